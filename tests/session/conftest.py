"""A session on fakes; `open_session()` in a test, closed after it."""

import pytest
import session_fakes as fakes

from faithfusion_studio.session.session import Session


@pytest.fixture
def world():
    return fakes.World()


@pytest.fixture
def open_session(world, tmp_path):
    """`open_session(scene?, **arguments)`: a session on fakes, closed after the test."""
    sessions = []

    def start(scene=None, **arguments):
        session = Session(
            fakes.make_scene() if scene is None else scene,
            engines=world.engines(),
            run_folder=tmp_path / "runs",
            **arguments,
        )
        sessions.append(session)
        return session

    yield start
    world.free = True
    world.allow(1000)
    for session in sessions:
        session.close(save=False)


@pytest.fixture
def tools():
    """The makers above, for tests."""

    class Tools:
        scene = staticmethod(fakes.make_scene)
        gaussians = staticmethod(fakes.make_gaussians)
        fisher = staticmethod(fakes.make_fisher)
        frame = staticmethod(fakes.make_frame)
        wait_until = staticmethod(fakes.wait_until)
        timeout = fakes.TIMEOUT

    return Tools
