"""What every test gets: checked shapes, few threads, fixed seeds, and the shared data where present."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What the person at this machine has accepted and fetched is no concern of the tests.
for _name in ("SETTINGS", "WEIGHTS"):
    os.environ[f"FF_STUDIO_{_name}"] = str(Path(__file__).parent / "not-there")

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the checkout first on the path, which would hide the compiled core of an
# installed package: the installed one (plain or editable) must be the one under test.
_elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if PathFinder.find_spec("faithfusion_studio", _elsewhere) is not None:
    sys.path[:] = _elsewhere

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

UNCHECKED = {"faithfusion_studio.render.cuda_kernels"}
"""Triton kernels are compiled from source and must not be wrapped."""

assert not [name for name in sys.modules if name.startswith("faithfusion_studio.")]


def _modules() -> list[str]:
    import importlib.util

    spec = importlib.util.find_spec("faithfusion_studio")
    if spec is None or not spec.submodule_search_locations:
        raise pytest.UsageError("faithfusion_studio is not installed; run: pip install -e '.[dev]'")
    names = set()
    for folder in spec.submodule_search_locations:
        for path in Path(folder).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] != "__init__":
                names.add(".".join(("faithfusion_studio", *parts)))
    return sorted(names - UNCHECKED)


install_import_hook(_modules(), "beartype.beartype")
torch.set_num_threads(2)
if not torch.cuda.is_available():
    # Triton decides once per process; its interpreter runs the kernels on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries that still use the global generator)


@pytest.fixture
def shared_data():
    """`shared_data("street/recorded")`: the path below ../shared/data, or a skip with the reason."""

    def find(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.exists():
            pytest.skip(f"../shared/data/{name} is not here")
        return path

    return find


@pytest.fixture
def run_python(tmp_path):
    """Run the package under test in a fresh interpreter: `run_python("-c", code)`."""
    import subprocess

    import faithfusion_studio

    home = str(Path(faithfusion_studio.__file__).resolve().parents[1])

    def run(*arguments: str, timeout: float = 120, env: dict | None = None):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": home, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
