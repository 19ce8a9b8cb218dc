"""TAEHV's decoder: the published layout, causal in time, and what its pictures are used for."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import need_diffusers, randomise, write_vace
from torch.nn import functional
from wall_world import wall_batch

from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.repair.base import RepairStep
from faithfusion_studio.repair.taehv import TaehvDecoder, load_taehv


def random_decoder():
    return randomise(TaehvDecoder(), 0.3).eval()


def test_the_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in TaehvDecoder().state_dict().items()}
    expected = {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for first, width, following, frames in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for block in range(first, first + 3):
            for layer, given in ((0, 2 * width), (2, width), (4, width)):
                expected[f"decoder.{block}.conv.{layer}.weight"] = (width, given, 3, 3)
                expected[f"decoder.{block}.conv.{layer}.bias"] = (width,)
        expected[f"decoder.{first + 4}.conv.weight"] = (frames * width, width, 1, 1)
        expected[f"decoder.{first + 5}.weight"] = (following, width, 3, 3)
    expected |= {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}
    assert found == expected


def frame_by_frame(decoder, latents):
    """The published walk: one latent at a time, every block remembers its last frame."""
    parts, memory, made = list(decoder.decoder), {}, []

    def go(x, i):
        if i == len(parts):
            made.append(x)
        elif hasattr(parts[i], "conv") and isinstance(parts[i].conv, torch.nn.Sequential):
            before = memory.get(i, torch.zeros_like(x))
            memory[i] = x
            go(torch.relu(parts[i].conv(torch.cat([x, before], 1)) + x), i + 1)
        elif hasattr(parts[i], "conv"):
            for part in functional.conv2d(x, parts[i].conv.weight).split(x.shape[1], dim=1):
                go(part, i + 1)
        else:
            go(parts[i](x), i + 1)

    for latent in latents.unbind(1):
        go(latent[None], 0)
    return torch.cat(made)[3:].clamp(0, 1)


def test_all_frames_at_once_equal_one_after_the_other():
    decoder, latents = random_decoder(), torch.randn(16, 4, 3, 5)
    with torch.no_grad():
        pictures = decoder(latents)
        assert pictures.shape == (13, 3, 24, 40)
        assert torch.allclose(pictures, frame_by_frame(decoder, latents), atol=1e-5)


def test_a_look_is_the_last_frame_of_the_middle_latent():
    decoder, latents = random_decoder(), torch.randn(16, 3, 2, 3)
    with torch.no_grad():
        whole = decoder(latents[:, :2])[-1].permute(1, 2, 0)
    assert torch.allclose(decoder.look(latents), whole, atol=1e-5)


def test_weights_are_read_with_or_without_the_encoder_and_strictly(tmp_path):
    assert load_taehv(tmp_path) is None
    decoder = random_decoder()
    tensors = {k: v.clone() for k, v in decoder.state_dict().items()}
    torch.save({**tensors, "encoder.0.bias": torch.zeros(64)}, tmp_path / "taew2_1.pth")
    latents = torch.randn(16, 2, 2, 2)
    loaded = load_taehv(tmp_path)
    assert loaded is not None
    with torch.no_grad():
        assert torch.equal(loaded(latents), decoder(latents))
    del tensors["decoder.22.bias"]
    save_file(tensors, tmp_path / "taew2_1.safetensors")  # comes first
    with pytest.raises(WeightsError, match=r"lacks decoder\.22\.bias"):
        load_taehv(tmp_path)


def test_the_engine_shows_what_it_is_making(tmp_path):
    need_diffusers()
    from faithfusion_studio.repair.eigent_vace import VaceConfig, VaceRepairer

    folder = write_vace(tmp_path / "vace")
    config = VaceConfig(size=(32, 48), frames=9, steps=3)
    batch = wall_batch(frames=5)

    def pictures():
        engine = VaceRepairer.from_pretrained(folder, config)
        steps = [s for s in engine.repair(batch) if isinstance(s, RepairStep)]
        return [s.picture for s in steps if s.what == "denoising"]

    assert pictures() == [None, None, None]
    save_file(random_decoder().state_dict(), folder / "taew2_1.safetensors")
    first, *others = pictures()
    assert first is None and all(p is not None and p.shape == (32, 48, 3) for p in others)
    assert all(0 <= float(p.min()) <= float(p.max()) <= 1 for p in others)
