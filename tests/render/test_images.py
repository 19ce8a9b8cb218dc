"""The image loss and the sky of the core against plain torch: values and gradients."""

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.losses import ssim_map
from faithfusion_studio.render.images import cubemap_image, weighted_image_loss
from faithfusion_studio.scene import CubemapSky, pixel_directions
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
