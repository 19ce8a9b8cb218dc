"""The arrow on the road: a drag moves the path as far as the pointer moved at the arrow's distance."""

import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
from street_scene import recorded_camera, street

from faithfusion_studio.cameras import offset_laterally
from faithfusion_studio.studio.lens import pose_of
from faithfusion_studio.studio.offset_handle import AHEAD, Grab, OffsetHandle, double_arrow

CANVAS = (960, 540)
LEFT = (0.0, 1.0, 0.0)


def on_screen(point, camera, pose):
    """Where a world point is in the picture, 0..1 from the top left."""
    x, y, z = (camera.viewmat.numpy() @ np.array([*point, 1.0]))[:3]
    half = math.tan(pose.fov / 2)
    return (x / z / half / (CANVAS[0] / CANVAS[1]) + 1) / 2, (y / z / half + 1) / 2


@pytest.mark.parametrize("metres", [-2.5, 0.0, 0.4, 3.0])
def test_the_grabbed_point_stays_under_the_pointer(metres):
    camera = recorded_camera(2)
    pose = pose_of(camera, CANVAS)
    point = (11.0, 0.3, 0.0)
    grab = Grab(pose, point, LEFT, offset=1.0)
    target = on_screen((point[0], point[1] + metres, point[2]), camera, pose)
    assert grab.offset_at(target) == pytest.approx(1.0 + metres, abs=1e-6)


def test_only_the_sideways_part_of_a_drag_counts():
    camera = recorded_camera(2)
    pose = pose_of(camera, CANVAS)
    x, y = on_screen((11.0, 0.0, 0.0), camera, pose)
    grab = Grab(pose, (11.0, 0.0, 0.0), LEFT, offset=-1.5)
    assert grab.offset_at((x, y - 0.6)) == pytest.approx(-1.5, abs=1e-6)


class FakeNode:
    def __init__(self, **properties):
        self.visible = True
        self.__dict__.update(properties)

    def on_drag(self, button):
        assert button == "left"
        return lambda call: setattr(self, "drag", call)


@pytest.fixture
def handle(view):
    nodes = []

    def add_mesh_simple(_name, _vertices, _faces, **properties):
        nodes.append(FakeNode(**properties))
        return nodes[-1]

    scene = SimpleNamespace(add_mesh_simple=add_mesh_simple)
    made = OffsetHandle(scene, lambda: pose_of(recorded_camera(0), CANVAS), view)
    made.nodes = nodes
    return made


def test_the_arrow_lies_on_the_road_before_the_shown_ego(handle, view):
    recorded = street().trajectory
    handle.update(view.get(), recorded)
    (node,) = handle.nodes
    np.testing.assert_allclose(node.position, [AHEAD, 0.0, 0.03], atol=1e-6)
    view.set(frame=3, offset=2.0)
    handle.update(view.get(), offset_laterally(recorded, 2.0))
    assert handle.nodes == [node]
    np.testing.assert_allclose(node.position, [3 + AHEAD, 2.0, 0.03], atol=1e-6)


def test_it_hides_with_the_paths_and_without_a_recording(handle, view):
    recorded = street().trajectory
    handle.update(view.get(), recorded)
    (node,) = handle.nodes
    view.set(show_paths=False)
    handle.update(view.get(), recorded)
    assert not node.visible
    view.set(show_paths=True)
    handle.update(view.get(), recorded)
    assert node.visible
    handle.update(view.get(), None)
    assert not node.visible


def test_a_drag_sets_the_offset_of_the_view(handle, view):
    handle.update(view.get(), street().trajectory)
    camera = recorded_camera(0)
    pose = pose_of(camera, CANVAS)
    point = (AHEAD, 0.0, 0.0)

    def event(phase, metres):
        screen = on_screen((point[0], metres, 0.0), camera, pose)
        return SimpleNamespace(phase=phase, start_position=point, end_screen_pos=screen)

    async def gesture():
        drag = handle.nodes[0].drag
        await drag(event("update", 5.0))  # before any start: ignored
        await drag(event("start", 0.0))
        for metres in (0.5, 1.1, 2.0):
            await drag(event("update", metres))
        await drag(event("end", 2.0))
        await drag(event("update", 5.0))  # after the end: ignored
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(gesture())
    assert view.get().offset == pytest.approx(2.0)


def test_the_arrow_points_to_both_sides():
    vertices, faces = double_arrow()
    assert vertices[:, 1].max() == -vertices[:, 1].min() > 0.5
    assert faces.max() < len(vertices)
