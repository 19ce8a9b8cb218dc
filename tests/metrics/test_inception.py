"""FID's Inception: its layout, its two deviations, and features that equal the reference program's."""

import pytest
import torch

from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import inception as I


def filled() -> I.Inception:
    """The network with weights by a formula, so that every machine has the same."""
    net = I.Inception().eval()
    for number, (name, tensor) in enumerate(sorted(net.state_dict().items())):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel()).double() * 0.7311 + number).view(tensor.shape)
        if name.endswith("conv.weight"):
            wave = wave * (3 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            wave = 1.0 + 0.3 * wave
        else:
            wave = 0.1 * wave
        tensor.copy_(wave)
    return net


def test_the_layout_is_that_of_the_published_file():
    state = I.Inception().state_dict()
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert sum(v.numel() for k, v in state.items() if k.endswith("weight")) > 23_000_000


def test_features_equal_those_of_the_reference_program():
    """Mean, deviation and first features of pytorch-fid 0.3.0 with the same weights and picture."""
    y, x = torch.meshgrid(torch.arange(299.0), torch.arange(299.0), indexing="ij")
    picture = torch.stack([torch.sin(x / 9), torch.cos(y / 7), torch.sin((x + y) / 23)])[None]
    with torch.no_grad():
        found = filled()(picture)[0]
    assert found.shape == (2048,)
    assert float(found.mean()) == pytest.approx(0.1217297, rel=1e-4)
    assert float(found.std()) == pytest.approx(0.2179523, rel=1e-4)
    assert found[[0, 500, 1000, 2047]].tolist() == pytest.approx(
        [0.0, 0.0, 0.00359563, 0.219129], rel=1e-3, abs=1e-5
    )


def test_a_mean_leaves_the_padding_out_and_the_last_block_takes_the_largest():
    block = I.Mixed(1, [[I.Conv("one", 1)]], 1).eval()
    last = I.Mixed(1, [[I.Conv("one", 1)]], 1, largest=True).eval()
    for part in (block, last):
        part.branch_pool.conv.weight.data.fill_(1.0)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    with torch.no_grad():
        corner = float(block(x)[0, 1, 0, 0])
        largest = float(last(x)[0, 1, 0, 0])
    assert corner == pytest.approx((0 + 1 + 3 + 4) / 4, rel=1e-3)
    assert largest == pytest.approx(4.0, rel=1e-3)


def test_a_file_is_named_by_its_hash(tmp_path):
    torch.save(I.Inception().state_dict(), tmp_path / "mine.pth")
    features = I.InceptionFeatures(tmp_path / "mine.pth")
    assert features.name.startswith("mine ") and not features.is_fid
    assert "299x299" in features.protocol
    assert features.pooled([torch.rand(40, 50, 3)]).shape == (1, 2048)
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not the weights of FID's Inception"):
        I.InceptionFeatures(tmp_path / "other.pth")
