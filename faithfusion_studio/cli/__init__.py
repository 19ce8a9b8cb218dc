"""The command line: parse with tyro, compose, run; nothing heavy is imported until a command runs.

Exit codes: 0 done, 2 for bad input (one sentence on standard error), 130 after Ctrl+C, 143 after
SIGTERM. With --json standard output carries exactly one object and everything else goes to
standard error.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from faithfusion_studio import __version__
from faithfusion_studio.cli.arguments import COMMANDS as OTHER_COMMANDS
from faithfusion_studio.cli.box_arguments import Boxes
from faithfusion_studio.cli.console import Terminated, say, terminable
from faithfusion_studio.cli.edit_arguments import Edit
from faithfusion_studio.cli.training_arguments import TRAINING
from faithfusion_studio.errors import StudioError

HOMES = {
    "view": "view",
    "reconstruct": "learn",
    "info": "look",
    "eig": "look",
    "engines": "engines",
    "repair": "learn",
    "fuse": "fusing",
    "render": "look",
    "metrics": "measure",
    "synthesize": "make",
    "train-refiner": "train",
    "train-eigent": "train",
    "pairs": "adapters",
    "train-adapter": "adapters",
    "convert": "make",
    "edit": "editing",
    "boxes": "annotate",
    "bench": "make",
}
"""The module of each command; imported when it runs."""
_ARGUMENTS = {**OTHER_COMMANDS, **TRAINING, "edit": Edit, "boxes": Boxes}
COMMANDS = {name: _ARGUMENTS[name] for name in HOMES}

DESCRIPTION = (
    "See per pixel where a 3D Gaussian driving scene can be trusted, repair it from beside the "
    "path, and distil the repair back. `ff-studio PATH` opens the studio. Frame ranges A:B are "
    "half-open indices into the recording; offsets are metres, positive is left."
)


class CommandLineError(StudioError):
    """Arguments that do not say what to do."""


def with_default_command(arguments: Sequence[str]) -> list[str]:
    """`ff-studio PATH` means `view PATH`; a mistyped command is told apart from a path.

    Raises:
        CommandLineError: The first word looks like a command but is none, and no such path exists.
    """
    arguments = list(arguments)
    if not arguments:
        return ["--help"]
    first = arguments[0]
    if first in COMMANDS or first.startswith("-"):
        return arguments
    if not Path(first).exists() and not Path(first).suffix and os.sep not in first:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        if near:
            raise CommandLineError(
                f"{first}: is neither a command nor a path; perhaps you meant {near[0]}."
            )
    return ["view", *arguments]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Words after the program's name; those of this process when None.

    Raises:
        SystemExit: From the parser: 0 after --help, 2 for arguments it does not know.
    """
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # PyTorch reads this when it is imported. Its idle threads would else spin for milliseconds after every operation
    # and keep the core's threads, and the viewer's, from the processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with terminable():
            return _run(with_default_command(arguments))
    except StudioError as error:
        return _fail(str(error), as_json)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", as_json)
    except MemoryError:
        return _fail("not enough memory; choose fewer frames or a smaller size.", as_json)
    except KeyboardInterrupt:
        say("stopped; nothing more was written.")
        return 130
    except Terminated as stop:
        return stop.exit_code


def _run(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-V"]):
        print(f"FaithFusion Studio {__version__}")
        return 0
    import tyro

    command: Any = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="ff-studio",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    name = next(name for name, kind in COMMANDS.items() if kind is type(command))
    if getattr(command, "weights", None) is not None:
        import_module(f"{__name__}.engines").use_weights(command.weights)
    if getattr(command, "patience", None) is not None:
        import_module(f"{__name__}.engines").allow_minutes(command.patience)
    home = import_module(f"{__name__}.{HOMES[name]}")
    result = getattr(home, name.replace("-", "_"))(command)
    if not command.json:
        tell(result.lines)
    elif result.values:
        announce(result.values)
    return result.exit_code


def tell(lines: Sequence[str]) -> None:
    """Print a result for people on standard output."""
    for line in lines:
        print(line, flush=True)


def announce(values: dict[str, Any]) -> None:
    """Print one object on standard output; numbers that are not finite become null."""
    print(json.dumps(_plain(values)), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _fail(reason: str, as_json: bool) -> int:
    sentence = " ".join(reason.split())
    say(f"error: {sentence}")
    if as_json:
        announce({"error": sentence})
    return 2


def entry() -> None:
    """The console script."""
    sys.exit(main())
