import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.render import views
from faithfusion_studio.scene import Scene
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import look_at, rgb_to_sh0

RED, BLUE = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.2, 0.3, 0.9])


def blob(x: float, color=RED, provenance=Provenance.RECORDED, opacity=0.95) -> Gaussians:
    return Gaussians(
        means=torch.tensor([[x, 0.0, 1.0]]),
        log_scales=torch.log(torch.tensor([[0.3, 0.3, 0.3]])),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        logit_opacities=torch.logit(torch.tensor([opacity])),
        sh0=rgb_to_sh0(color)[None, None],
        shN=torch.zeros(1, 0, 3),
        provenance=torch.tensor([int(provenance)], dtype=torch.uint8),
    )


def camera(width: int = 32, height: int = 24) -> Camera:
    pose = look_at(*torch.tensor([[0.0, 0, 1], [5, 0, 1], [0, 0, 1]], dtype=torch.float64))
    K = torch.tensor([[40.0, 0, width / 2], [0, 40, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, width, height, 0.0)


def test_a_view_shows_the_blob_before_the_sky():
    view = views.render_view(Scene(blob(5.0), sky=ConstantSky(BLUE)), camera())
    assert view.rgb.shape == (24, 32, 3)
    torch.testing.assert_close(view.rgb[0, 0], BLUE, atol=1e-4, rtol=0)
    alpha = view.alpha[12, 16]
    assert float(alpha) > 0.9
    torch.testing.assert_close(view.rgb[12, 16], alpha * RED + (1 - alpha) * BLUE)
    assert float(view.depth[12, 16]) == pytest.approx(5.0, abs=0.01)
    assert float(view.alpha[0, 0]) == 0


def test_without_sky_the_rest_is_black():
    scene = Scene(blob(5.0), sky=ConstantSky(BLUE))
    view = views.render_view(scene, camera(), views.ViewOptions(sky=False))
    assert float(view.rgb[0, 0].abs().max()) == 0
    assert float(views.sky_image(Scene(blob(5.0)), camera()).abs().max()) == 0


def test_nodes_are_drawn_where_they_are_at_the_cameras_time():
    node = RigidNode(
        "car",
        blob(0.0),
        torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        torch.tensor([0.0, 1], dtype=torch.float64),
        torch.tensor([True, False]),
        torch.tensor([4.0, 2, 1.5]),
    )
    node.poses[:, 0, 3] = 6.0
    scene = Scene(blob(40.0, opacity=0.01), nodes=(node,))
    view = views.render_view(scene, camera())
    assert float(view.depth[12, 16]) == pytest.approx(6.0, abs=0.2)
    later = views.render_view(scene, camera().moved(camera().camtoworld, 1.0))
    assert float(later.alpha[12, 16]) < 0.05


def test_the_generated_share_follows_provenance():
    scene = Scene(blob(5.0, provenance=Provenance.REPAIRED))
    view = views.render_view(scene, camera(), views.ViewOptions(provenance=True))
    assert float(view.generated[12, 16]) == pytest.approx(1.0, abs=1e-4)
    assert float(view.generated[0, 0]) == 0
    recorded = views.render_view(Scene(blob(5.0)), camera(), views.ViewOptions(provenance=True))
    assert float(recorded.generated.max()) == 0


def test_the_near_plane_hides_what_is_closer():
    view = views.render_view(Scene(blob(1.0)), camera(), views.ViewOptions(near_plane=2.0))
    assert float(view.alpha.max()) == 0


def test_views_come_one_after_the_other():
    rendered = list(views.render_views(Scene(blob(5.0)), [camera(), camera(16, 8)]))
    assert [v.rgb.shape[:2] for v in rendered] == [(24, 32), (8, 16)]


def test_rasterised_views_are_differentiable():
    base = blob(5.0)
    means = base.means.clone().requires_grad_()
    from dataclasses import replace

    view = views.rasterize_view(Scene(replace(base, means=means)), camera())
    (view.rgb * torch.rand(24, 32, 3)).sum().backward()
    assert float(means.grad.abs().max()) > 0


def test_exposure_is_affine_and_optional():
    rgb = torch.rand(2, 3, 3)
    assert views.apply_exposure(rgb, None) is rgb
    exposure = torch.cat([2 * torch.eye(3), torch.tensor([[0.1], [0.2], [0.3]])], 1)
    torch.testing.assert_close(
        views.apply_exposure(rgb, exposure), rgb * 2 + torch.tensor([0.1, 0.2, 0.3])
    )


def test_colour_tables_are_looked_up_and_clamped():
    table = views.palette("turbo")
    values = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 7.0, torch.nan]])
    expected = table[torch.tensor([0, 0, 128, 255, 255, 0])]
    torch.testing.assert_close(views.colorize(values, table)[0], expected)


def test_bytes_are_rounded_not_cut():
    rgb = torch.tensor([[[0.0, 0.4999 / 255, 0.5001 / 255], [1.2, 254.6 / 255, -1]]])
    assert views.to_uint8(rgb).flatten().tolist() == [0, 0, 1, 255, 255, 0]
