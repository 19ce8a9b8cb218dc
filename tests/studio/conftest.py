"""Stand-ins for the browser and the session, with the fields the studio uses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from street_scene import street  # noqa: E402
from studio_fakes import FakeSession, FakeWindow  # noqa: E402


@pytest.fixture
def scene():
    return street()


@pytest.fixture
def session(scene):
    return FakeSession(scene)


@pytest.fixture
def window():
    return FakeWindow()


@pytest.fixture
def view(window, scene):
    from faithfusion_studio.studio.view_state import View, ViewState

    return View(ViewState(), num_frames=len(scene.capture), window=window)
