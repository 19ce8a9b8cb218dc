"""The floors: an import may only go down; heavy libraries are imported where they are used."""

import ast
from pathlib import Path

import pytest

import faithfusion_studio

PACKAGE = Path(faithfusion_studio.__file__).resolve().parent

FLOORS = {
    "cli": 7,
    "studio": 6,
    "bench": 6,
    "session": 5,
    "training": 5,
    "fusion": 4,
    "editing": 4,
    "rig_video": 4,
    "video": 4,
    "information": 3,
    "repair": 3,
    "synthetic": 3,
    "metrics": 3,
    "io": 2,
    "annotating": 2,
    "render": 2,
    "scene": 1,
    "annotation": 1,
    "boxes": 1,
    "nodes": 1,
    "motion": 1,
    "sky": 1,
    "lens": 1,
    "gaussians": 1,
    "rig": 1,
    "cameras": 1,
    "transforms": 0,
    "errors": 0,
}
SAME_FLOOR = {
    ("scene", "nodes"),
    ("scene", "boxes"),
    ("annotation", "boxes"),
    ("boxes", "cameras"),
    ("scene", "sky"),
    ("scene", "lens"),
    ("lens", "cameras"),
    ("scene", "gaussians"),
    ("scene", "cameras"),
    ("rig", "cameras"),
    ("rig_video", "video"),
    ("nodes", "motion"),
    ("nodes", "gaussians"),
    ("motion", "gaussians"),
    ("sky", "cameras"),
}
"""Arrows between neighbours; every other arrow must go down."""

HEAVY = ["viser", "nerfview", "diffusers", "gsplat", "triton", "trimesh", "ray"]


def _part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imported_modules(tree: ast.AST, path: Path):
    """Every module of ours that a file names in an import, lazily or not, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = path.parent
                for _ in range(node.level - 1):
                    folder = folder.parent
                prefix = ".".join(("faithfusion_studio", *folder.relative_to(PACKAGE).parts))
                base = f"{prefix}.{base}" if base else prefix
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _arrows(path: Path):
    for line, module in _imported_modules(ast.parse(path.read_text()), path):
        parts = module.split(".")
        if parts[0] == "faithfusion_studio" and len(parts) > 1 and parts[1] in FLOORS:
            yield line, parts[1]


def _files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_has_a_floor():
    assert {_part(path) for path in _files()} <= set(FLOORS)


def test_imports_only_go_down():
    wrong = []
    for path in _files():
        here = _part(path)
        for line, there in _arrows(path):
            if here == there or (here, there) in SAME_FLOOR:
                continue
            if FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} {here} -> {there}")
    assert wrong == []


def test_the_arrow_reader_sees_every_kind_of_import():
    source = (
        "import faithfusion_studio.io\n"
        "from faithfusion_studio import scene\n"
        "from faithfusion_studio.render.views import palette\n"
        "from . import store\n"
        "from ..cameras import Camera\n"
        "def f():\n    from faithfusion_studio.session.store import Snapshot\n"
    )
    found = [m for _, m in _imported_modules(ast.parse(source), PACKAGE / "session" / "x.py")]
    assert [m.split(".")[1] for m in found] == [
        "io",
        "scene",
        "render",
        "session",
        "cameras",
        "session",
    ]


def test_viser_is_named_in_the_studio_only():
    naming = set()
    for path in _files():
        for _, module in _imported_modules(ast.parse(path.read_text()), path):
            if module.split(".")[0] in ("viser", "nerfview"):
                naming.add(_part(path))
    assert naming <= {"studio"}


@pytest.mark.parametrize(
    "module", ["faithfusion_studio", "faithfusion_studio.cli", "faithfusion_studio.scene"]
)
def test_importing_stays_light(run_python, module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    result = run_python("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_help_needs_neither_torch_nor_numpy(run_python):
    code = (
        "import sys\n"
        "from faithfusion_studio import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code in (0, None)\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'cv2', 'av') if m in sys.modules])"
    )
    result = run_python("-c", code)
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stdout + result.stderr


def test_files_stay_readable_in_one_sitting():
    long = {p.name: n for p in _files() if (n := len(p.read_text().splitlines())) > 500}
    assert long == {}
