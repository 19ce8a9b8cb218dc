"""What a person has decided once for all projects: a small JSON file in the platform's settings folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io.atomic import write_atomically


class SettingsError(StudioError):
    """A settings file that cannot be read or written."""


def settings_file() -> Path:
    """Where the settings are kept; the environment variable FF_STUDIO_SETTINGS chooses another file."""
    chosen = os.environ.get("FF_STUDIO_SETTINGS")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "faithfusion-studio" / "settings.json"


def read_settings() -> dict[str, Any]:
    """All settings; empty where nothing was ever decided.

    Raises:
        SettingsError: The file is there and is not a JSON object.
    """
    path = settings_file()
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); mend or delete it."
        ) from error
    except ValueError as error:
        raise SettingsError(f"{path}: is not JSON ({error}); mend or delete it.") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: holds no JSON object; mend or delete it.")
    return found


def change_settings(**values: Any) -> None:
    """Write some settings and keep the others.

    Raises:
        SettingsError: The file cannot be read or written.
    """
    path = settings_file()
    merged = {**read_settings(), **values}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"{path.parent}: cannot be made ({error.strerror}); set FF_STUDIO_SETTINGS to a file "
            "that can be written."
        ) from error
    with write_atomically(path, SettingsError) as temporary:
        temporary.write_text(json.dumps(merged, indent=1, sort_keys=True))
