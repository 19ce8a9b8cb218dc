"""EIGent on VACE: layout, mask polarity, weights per token, the start from the render, adapters."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VACE, need_diffusers, tiny_vace, write_model, write_vace
from torch.nn import functional
from wall_world import wall_batch

need_diffusers()

from faithfusion_studio.errors import StudioError  # noqa: E402
from faithfusion_studio.repair import repair_batch  # noqa: E402
from faithfusion_studio.repair.base import FrameRepair, RepairStep  # noqa: E402
from faithfusion_studio.repair.diffusers_models import build, count_parameters  # noqa: E402
from faithfusion_studio.repair.eigent_vace import (  # noqa: E402
    VaceConfig,
    VaceRepairer,
    folded_mask,
    load_vace,
)
from faithfusion_studio.repair.gate import GateConfig  # noqa: E402
from faithfusion_studio.repair.video import Cues, build_clip  # noqa: E402

OPEN = GateConfig(drift_limit=9.0)
SMALL = VaceConfig(size=(32, 48), frames=9, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vace(tmp_path_factory.mktemp("vace"))


@pytest.fixture(scope="module")
def engine(folder):
    return VaceRepairer.from_pretrained(folder, SMALL)


def run(generator):
    """The value a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def clip(engine):
    return run(build_clip(wall_batch(frames=5), Cues(), engine.config.size, None))[0]


def test_the_full_size_models_have_the_counted_parameters():
    published = {
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "vace_layers": list(range(0, 30, 2)),
    }
    trunk = build("WanVACETransformer3DModel", published)
    plain = build("WanTransformer3DModel", published)
    vae = build("AutoencoderKLWan", {})
    counts = [count_parameters(model) for model in (trunk, plain, vae)]
    assert [round(count / 1e6) for count in counts] == [2154, 1419, 127]
    assert round((counts[0] - counts[1]) / 1e6) == 735
    assert tuple(trunk.vace_patch_embedding.weight.shape) == (1536, 96, 1, 2, 2)


def test_the_transformer_loads_strictly_and_comes_back(folder, tmp_path):
    trunk = load_vace(folder / "transformer", None, torch.float32)
    write_model(tmp_path, VACE, trunk.state_dict())
    again = load_vace(tmp_path, None, torch.float32)
    fresh = tiny_vace()
    for one in (trunk, again):
        assert one.state_dict().keys() == fresh.state_dict().keys()
        assert torch.equal(one.rope.freqs_cos, fresh.rope.freqs_cos)
    tensors = dict(trunk.state_dict())
    del tensors["vace_blocks.0.proj_in.weight"]
    write_model(tmp_path / "less", VACE, tensors)
    with pytest.raises(StudioError, match="lacks vace_blocks.0.proj_in.weight"):
        load_vace(tmp_path / "less", None, torch.float32)


def test_parts_that_need_it_stay_in_full_precision(folder):
    trunk = load_vace(folder / "transformer", None, torch.bfloat16)
    assert trunk.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert trunk.scale_shift_table.dtype == torch.float32
    assert trunk.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32


def test_the_mask_is_folded_as_the_stock_pipeline_does():
    from diffusers import WanVACEPipeline

    mask = torch.rand(9, 32, 48) > 0.5
    stock = WanVACEPipeline.__new__(WanVACEPipeline)
    stock.__dict__.update(vae_scale_factor_temporal=4, vae_scale_factor_spatial=8)
    stock.__dict__["_internal_dict"] = {}
    object.__setattr__(stock, "transformer", type("T", (), {"config": tiny_vace().config})())
    shown = mask[None, None].float().expand(1, 3, -1, -1, -1)
    theirs = stock.prepare_masks(shown, [[]])
    assert torch.equal(folded_mask(mask), theirs)


def test_context_keeps_the_render_outside_the_ucr_and_shows_the_cue_inside(engine, clip):
    """Polarity: inactive is what is kept, reactive what is replaced, mask 1 means generate."""
    with torch.no_grad():
        context, references = engine._context(clip, torch.device("cpu"))
        known = engine._encode(clip.renders)
        none = torch.zeros_like(clip.ucr)
        kept, _ = engine._context(replace(clip, ucr=none), torch.device("cpu"))
        free, _ = engine._context(replace(clip, ucr=~none), torch.device("cpu"))
        grey = engine._encode_signed(torch.zeros_like(clip.renders))
        cue = engine._encode(clip.cues)
    assert references == 1 and context.shape == (1, 96, 3, 4, 6)
    assert torch.allclose(kept[:, :16, 1:], known, atol=1e-5)
    assert torch.allclose(kept[:, 16:32, 1:], grey, atol=1e-5) and not kept[:, 32:, 1:].any()
    assert torch.allclose(free[:, :16, 1:], grey, atol=1e-5)
    assert torch.allclose(free[:, 16:32, 1:], cue, atol=1e-5) and bool(
        (free[:, 32:, 1:] == 1).all()
    )
    assert not context[:, 16:, 0].any() and bool(context[:, :16, 0].any())


def test_tokens_of_extreme_eig_are_left_to_the_trunk(engine, clip):
    eig = torch.zeros_like(clip.eig)
    eig[:, 16:, :] = 1.0  # the lower half
    with torch.no_grad():
        shown = engine._encode(clip.renders)
    scale = engine._scale(replace(clip, eig=eig), shown, 1)
    assert scale.shape == (2, 1, 18, 1)
    per_token = scale[1, 0, :, 0].view(3, 2, 3)
    assert bool((per_token[0] == 1).all())  # the reference image
    assert bool((per_token[1:, 0] == 1).all()) and not per_token[1:, 1].any()


def test_the_weight_per_token_reaches_the_stock_model(engine):
    """M (.) G without a subclass: weight 0 is the trunk without context, 1 the stock model."""
    trunk = engine.trunk
    shapes = {"hidden_states": (1, 16, 2, 4, 6), "control_hidden_states": (1, 96, 2, 4, 6)}
    given = {name: torch.randn(shape) for name, shape in shapes.items()}
    given |= {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 6, 12)}

    def out(scale):
        with torch.no_grad():
            return trunk(**given, control_hidden_states_scale=scale, return_dict=False)[0]

    ones, zeros = torch.ones(2, 1, 12, 1), torch.zeros(2, 1, 12, 1)
    assert torch.allclose(out(ones), out(torch.ones(2)), atol=1e-6)
    assert torch.allclose(out(zeros), out(torch.zeros(2)), atol=1e-6)
    assert not torch.allclose(out(ones), out(zeros), atol=1e-3)
    half = ones.clone()
    half[:, :, 6:] = 0
    assert not torch.allclose(out(half), out(ones), atol=1e-3)
    assert not torch.allclose(out(half), out(zeros), atol=1e-3)


def test_noise_starts_at_the_strength_and_ends_at_zero(engine):
    sigmas = engine._scheduler(torch.device("cpu")).sigmas
    assert float(sigmas[0]) == pytest.approx(0.65, abs=1e-5) and float(sigmas[-1]) == 0
    assert len(sigmas) == 3 and bool((sigmas.diff() < 0).all())


def test_a_model_that_knows_the_way_back_ends_at_the_render(engine, monkeypatch):
    """Flow matching: with the velocity noise - render, any number of steps lands on the render."""
    shown = torch.randn(1, 16, 3, 4, 6)
    noise = torch.randn(shown.shape, generator=torch.Generator().manual_seed(7))

    def velocity(**_given):
        return (noise - shown,)

    class Known:
        patch_embedding = engine.trunk.patch_embedding
        __call__ = staticmethod(velocity)

    monkeypatch.setattr(engine, "trunk", Known())
    context, scale = torch.zeros(1, 96, 3, 4, 6), torch.ones(2, 1, 18, 1)
    found = run(engine._denoise(shown, context, scale, 0, 7, 9))
    assert torch.allclose(found, shown, atol=1e-5)


def test_the_vae_keeps_a_latent_in_its_statistics(engine):
    latents = torch.randn(1, 16, 2, 4, 6)
    mean, std = engine._statistics(latents)
    assert mean.shape == (1, 16, 1, 1, 1)
    with torch.no_grad():
        raw = engine.vae.decode(latents * std + mean).sample
        assert torch.allclose(
            engine._decode(latents), (raw[0].permute(1, 0, 2, 3) / 2 + 0.5).clamp(0, 1)
        )


def lora_for(trunk, prefix="transformer."):
    layer = "blocks.1.attn1.to_q"
    weight = trunk.get_submodule(layer).weight
    a, b = torch.randn(4, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], 4) * 0.2
    return (
        layer,
        a,
        b,
        {
            f"{prefix}{layer}.lora_A.weight": a,
            f"{prefix}{layer}.lora_B.weight": b,
        },
    )


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_distilled_adapter_is_folded_and_runs_few_steps(tmp_path, alpha):
    folder = write_vace(tmp_path)
    plain = load_vace(folder / "transformer", None, torch.float32)
    layer, a, b, tensors = lora_for(plain)
    if alpha is not None:
        tensors[f"transformer.{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, folder / "lora.safetensors")
    engine = VaceRepairer.from_pretrained(folder, VaceConfig(size=(32, 48), frames=9))
    assert engine.steps == 6
    base, folded = plain.get_submodule(layer), engine.trunk.get_submodule(layer)
    x, scale = torch.randn(3, 24), 1.0 if alpha is None else alpha / 4
    beside = base(x) + scale * functional.linear(functional.linear(x, a), b)
    assert torch.allclose(folded(x), beside, atol=1e-5)


def test_an_adapter_in_wans_own_names_is_renamed(tmp_path):
    from faithfusion_studio.repair.lora import plain_lora_names

    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(4, 24),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(24, 4),
    }
    names = set(plain_lora_names(tensors))
    assert names == {"blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight"}


def test_windows_reach_over_any_length(engine):
    result = repair_batch(engine, wall_batch(frames=12), OPEN)
    assert result.rgb.shape[0] == 12


def test_it_stops_within_a_step(engine):
    steps = engine.repair(wall_batch())
    assert [next(steps).what for _ in range(2)] == ["encoding", "denoising"]
    steps.close()
    kinds = [type(item) for item in engine.repair(wall_batch())]
    assert kinds == [RepairStep] * 4 + [FrameRepair] * 2


def test_blocks_can_visit_the_device_one_by_one_and_nothing_changes(folder, engine):
    visiting = VaceRepairer.from_pretrained(folder, replace(SMALL, profile="blocks"))
    batch = wall_batch()
    first = repair_batch(visiting, batch, OPEN).rgb
    assert torch.allclose(first, repair_batch(engine, batch, OPEN).rgb, atol=1e-4)
    assert not any(block._forward_pre_hooks for block in visiting.trunk.blocks)
