"""What a killed writer leaves behind goes away with the next save; what a living one writes stays."""

import os
import subprocess
import sys

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io.atomic import write_atomically


def test_leftovers_of_dead_processes_are_cleared_and_those_of_the_living_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".a.ply.{ended.pid}.abc.part"
    alive = tmp_path / f".a.ply.{os.getpid()}.abc.part"
    other = tmp_path / f".b.ply.{ended.pid}.abc.part"
    for file in (dead, alive, other):
        file.write_bytes(b"half")
    with write_atomically(tmp_path / "a.ply", StudioError) as temporary:
        temporary.write_bytes(b"whole")
    assert not dead.exists() and alive.exists() and other.exists()
    assert (tmp_path / "a.ply").read_bytes() == b"whole"
