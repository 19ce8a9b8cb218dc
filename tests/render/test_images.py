"""The image loss and the sky of the core against plain torch: values and gradients."""

from dataclasses import replace

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.losses import SparseDepth, TrainingView, ssim_map, view_loss
from faithfusion_studio.fusion.schedule import LossWeights
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.images import cubemap_image, weighted_image_loss
from faithfusion_studio.sky import CubemapSky, pixel_directions
from faithfusion_studio.transforms import look_at


def _torch_loss(rendered, image, weight, share):
    if weight is not None:
        rendered = torch.where(weight[..., None] > 0, rendered, image)
    total = (1 - share) * (rendered - image).abs().mean(-1)
    total = total + share * (1 - ssim_map(rendered, image))
    return total.mean() if weight is None else (total * weight).mean()


@pytest.mark.parametrize("size", [(24, 31), (7, 5), (1, 1), (33, 64)])
@pytest.mark.parametrize("weighted", [False, True])
def test_image_loss_and_gradient_equal_plain_torch(size, weighted):
    generator = torch.Generator().manual_seed(2)
    rendered = torch.rand(*size, 3, generator=generator)
    image = (rendered + 0.2 * torch.rand(*size, 3, generator=generator)).clamp(0, 1)
    weight = torch.rand(*size, generator=generator) * 1.4 - 0.4 if weighted else None
    weight = None if weight is None else weight.clamp(min=0)
    ours, theirs = (rendered.clone().requires_grad_(True) for _ in range(2))
    a = weighted_image_loss(ours, image, weight, 0.2)
    b = _torch_loss(theirs, image, weight, 0.2)
    a.backward()
    b.backward()
    assert float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-4, abs=1e-7)
    assert torch.allclose(
        ours.grad, theirs.grad, rtol=2e-3, atol=2e-3 * float(theirs.grad.abs().max())
    )


def _camera():
    pose = look_at(
        torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64),
        torch.tensor([4.0, 2.5, 3.0], dtype=torch.float64),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    )
    K = torch.tensor([[20.0, 0, 15.5], [0, 21.0, 11.0], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 31, 22)


def test_sky_equals_the_lookup_by_directions():
    texels = torch.rand(6, 8, 8, 3, generator=torch.Generator().manual_seed(3))
    camera = _camera()
    expected = CubemapSky(texels).radiance(pixel_directions(camera))
    assert torch.allclose(cubemap_image(texels, camera), expected, atol=2e-5)


def test_sky_gradient_equals_torch_and_hidden_pixels_give_none():
    camera = _camera()
    alpha = torch.rand(22, 31, generator=torch.Generator().manual_seed(4))
    alpha[:10] = 1.0
    v = torch.rand(22, 31, 3, generator=torch.Generator().manual_seed(5))
    ours, theirs = (torch.rand(6, 8, 8, 3).requires_grad_(True) for _ in range(2))
    image = cubemap_image(ours, camera, alpha)
    assert torch.equal(image[:10].detach(), torch.zeros(10, 31, 3))
    (image * v).sum().backward()
    expected = CubemapSky(theirs).radiance(pixel_directions(camera))
    (expected * v * (alpha < 1 - 1 / 255)[..., None]).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def _view_case(seed, size=(26, 37), exposed=True, weighted=False):
    g = torch.Generator().manual_seed(seed)
    H, W = size
    alpha = torch.rand(1, H, W, 1, generator=g) * 1.2
    alpha = alpha.clamp(max=0.999)
    alpha[0, :3, :4] = 0
    depth = 4 + torch.linspace(0, 1, H)[:, None] * 3 + 0.05 * torch.rand(H, W, generator=g)
    rendered = torch.cat(
        [torch.rand(1, H, W, 3, generator=g), depth[None, ..., None] * alpha], dim=-1
    )
    pixels = torch.randint(0, H * W, (40,), generator=g)
    known = depth.reshape(-1)[pixels] * (1 + 0.3 * (torch.rand(40, generator=g) - 0.5))
    ground = torch.where(torch.arange(H)[:, None] > H // 2, depth * 1.02, 0.0)
    weight = (torch.rand(H, W, generator=g) * 1.3 - 0.3).clamp(min=0) if weighted else None
    view = TrainingView(
        camera=_camera(),
        image=torch.rand(H, W, 3, generator=g),
        weight=weight,
        depth=SparseDepth(pixels, known),
        ground=ground,
        sky_share=torch.rand(H, W, generator=g),
    )
    exposure = torch.eye(3, 4) + 0.05 * torch.randn(3, 4, generator=g)
    behind = torch.rand(H, W, 3, generator=g)
    return [rendered, alpha, behind, exposure if exposed else None], view


def _in_float64(view):
    return replace(
        view,
        image=view.image.double(),
        weight=None if view.weight is None else view.weight.double(),
        depth=None
        if view.depth is None
        else SparseDepth(view.depth.pixels, view.depth.depths.double()),
        ground=None if view.ground is None else view.ground.double(),
        sky_share=None if view.sky_share is None else view.sky_share.double(),
    )


TERMS = LossWeights(ssim=0.3, depth=0.7, plane=0.9, ground=1.1, sky=0.4)


@pytest.mark.parametrize("size", [(26, 37), (5, 70), (2, 2), (1, 9), (33, 16)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
def test_all_terms_of_a_view_equal_float64_torch(size, weighted, exposed):
    given, view = _view_case(3, size, exposed, weighted)
    ours = [None if t is None else t.clone().requires_grad_() for t in given]
    theirs = [None if t is None else t.double().requires_grad_() for t in given]
    a, b = view_loss(*ours, view, TERMS), view_loss(*theirs, _in_float64(view), TERMS)
    a.backward()
    b.backward()
    assert float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-5)
    for mine, truth in zip(ours, theirs, strict=True):
        if mine is not None:
            error = (mine.grad.double() - truth.grad).norm() / truth.grad.norm()
            assert float(error) < 1e-4


@pytest.mark.parametrize("term", ["depth", "plane", "ground", "sky"])
def test_each_term_of_a_view_reaches_the_gradient_as_in_torch(term):
    given, view = _view_case(4)
    weights = replace(LossWeights(), ssim=0.0, depth=0.0, plane=0.0, ground=0.0, sky=0.0)
    weights = replace(weights, **{term: 3.0})
    view = replace(view, weight=torch.zeros_like(view.sky_share))
    ours = [t.clone().requires_grad_() for t in given]
    theirs = [t.double().requires_grad_() for t in given]
    (2 * view_loss(*ours, view, weights)).backward()
    (2 * view_loss(*theirs, _in_float64(view), weights)).backward()
    for i, (mine, truth) in enumerate(zip(ours, theirs, strict=True)):
        error = (mine.grad.double() - truth.grad).norm()
        assert float(error) <= 1e-5 * float(truth.grad.norm())
        assert i != 1 or float(truth.grad.norm()) > 0


def test_a_view_gives_the_same_bits_on_one_thread_and_two():
    results = []
    for threads in (1, 2):
        given, view = _view_case(5)
        leaves = [t.requires_grad_() for t in given]
        with thread_limit(threads):
            loss = view_loss(*leaves, view, TERMS)
            loss.backward()
        results.append([loss.detach(), *(t.grad.clone() for t in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
