"""The README is true: every command in it is run here or by .ci/run."""

import re
import shlex
from pathlib import Path

import pytest
from test_architecture import FLOORS
from test_cli import make_scene

from faithfusion_studio import cli
from faithfusion_studio.io import load_scene, save_scene

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BUDGET = {
    "reconstruct": ["--steps", "2", "--max-gaussians", "1200"],
    "fuse": ["--steps", "2"],
}
"""Appended to a line: the same command, for less time."""


def blocks(language: str) -> list[str]:
    found = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    return [body for name, body in found if name == language]


def shell_lines() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder like a fresh clone, with a small scene under the name of the shipped one."""
    from dataclasses import replace

    from faithfusion_studio.information import FisherAccumulator

    folder = tmp_path_factory.mktemp("clone")
    (folder / "scenes").mkdir()
    scene = make_scene(frames=31)
    evidence = FisherAccumulator(scene)
    for frame in scene.capture.frames[::10]:
        evidence.add(frame.camera, frame.image())
    scene = replace(scene, fisher=evidence.finish())
    save_scene(scene, folder / "scenes" / "segment.ckpt")
    return folder


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_the_first_two_lines_set_up_and_open_or_test():
    opens, tests = shell_lines()[:2]
    assert opens.endswith(".venv/bin/ff-studio scenes/segment.ckpt")
    assert tests.endswith(".venv/bin/python -m pytest")
    for line in (opens, tests):
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    start = re.search(r'grep -m1 -F "(.*?)" README.md', (ROOT / ".ci" / "run").read_text())[1]
    assert [line for line in README.splitlines() if start in line] == [tests]


def test_every_other_line_is_a_command_of_ours():
    for line in shell_lines()[2:]:
        words = shlex.split(line)
        assert words[0] == "ff-studio"
        assert cli.with_default_command(words[1:])[0] in cli.COMMANDS


def test_the_commands_run_in_the_order_they_are_written(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for line in shell_lines()[2:]:
        words = cli.with_default_command(shlex.split(line)[1:])
        if words[0] == "view":
            continue  # runs until Ctrl+C: test_the_studio_says_where_it_is in test_cli.py
        assert cli.main([*words, *BUDGET.get(words[0], [])]) == 0, capsys.readouterr().err
    written = {path.name for path in workplace.iterdir()}
    expected = {"eig", "repaired", "fused.ckpt", "street.ply", "before.mp4", "after.mp4", "layers"}
    assert expected <= written
    assert load_scene(workplace / "fused.ckpt").fisher is not None


def test_the_python_example_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 12
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([32, 48, 3])")


def test_the_floors_figure_is_the_table_that_is_executed():
    figure = next(block for block in blocks("") if "transforms" in block)
    drawn = {
        name: int(line[0])
        for line in figure.splitlines()
        for name in re.findall(r"\w+", re.split(r"(?<=\S)\s{6,}", line[1:], maxsplit=1)[0])
    }
    assert drawn == FLOORS
