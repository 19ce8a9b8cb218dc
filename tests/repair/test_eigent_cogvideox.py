"""EIGent on CogVideoX: layout, injection, both traps, the reference, clips, and stopping."""

from dataclasses import replace

import pytest
import torch
from tiny_models import (
    COGVIDEOX,
    COGVIDEOX_VAE,
    need_diffusers,
    tiny_branch,
    tiny_trunk,
    write_cogvideox,
    write_model,
)
from wall_world import wall_batch

need_diffusers()

from faithfusion_studio.errors import StudioError  # noqa: E402
from faithfusion_studio.repair import repair_batch  # noqa: E402
from faithfusion_studio.repair.base import FrameRepair, RepairStep  # noqa: E402
from faithfusion_studio.repair.diffusers_models import build, count_parameters  # noqa: E402
from faithfusion_studio.repair.eigent_branch import (  # noqa: E402
    EigentBlock,
    EigentContextBranch,
    injected,
    load_branch,
    reference_attention,
)
from faithfusion_studio.repair.eigent_cogvideox import (  # noqa: E402
    CogVideoXConfig,
    CogVideoXRepairer,
)
from faithfusion_studio.repair.gate import GateConfig  # noqa: E402
from faithfusion_studio.repair.video import Cues, build_clip, windowed  # noqa: E402

PUBLISHED = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,
    "out_channels": 16,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}
OPEN = GateConfig(drift_limit=9.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cogvideox(tmp_path_factory.mktemp("cogvideox"))


@pytest.fixture(scope="module")
def engine(folder):
    return CogVideoXRepairer.from_pretrained(folder, CogVideoXConfig(steps=2))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(2)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "latents": noise(1, 3, 16, 6, 8),
        "render": noise(1, 3, 16, 6, 8),
        "eig": torch.rand(1, 3, 1, 6, 8, generator=generator),
        "reference": noise(1, 3, 16, 6, 8),
        "text": noise(1, 5, 12),
        "timestep": torch.tensor([500]),
    }


def rope_of(trunk, frames=3):
    engine = CogVideoXRepairer.__new__(CogVideoXRepairer)
    engine.trunk = trunk
    return engine._rope(torch.zeros(1, frames, 16, 6, 8))


def run_trunk(trunk, inputs, rope):
    condition = torch.zeros_like(inputs["latents"])
    with torch.no_grad():
        return trunk(
            hidden_states=torch.cat([inputs["latents"], condition], dim=2),
            encoder_hidden_states=inputs["text"],
            timestep=inputs["timestep"],
            image_rotary_emb=rope,
            return_dict=False,
        )[0]


def test_the_full_size_models_have_the_counted_parameters():
    trunk = build("CogVideoXTransformer3DModel", PUBLISHED)
    vae = build("AutoencoderKLCogVideoX", {})
    counts = [count_parameters(trunk), count_parameters(vae)]
    assert [round(count / 1e6) for count in counts] == [5570, 216]
    sizes = {}
    for layers, reference in ((2, True), (4, True), (2, False)):
        with torch.device("meta"):
            branch = EigentContextBranch({**PUBLISHED, "num_layers": layers}, reference=reference)
        # The counts known for the published branches leave these four parts out.
        small = (branch.time_embedding, branch.norm_out, branch.proj_out, branch.branch_x_embedder)
        whole = count_parameters(branch)
        sizes[layers, reference] = (
            round(whole / 1e6),
            round((whole - sum(map(count_parameters, small))) / 1e6),
        )
    assert sizes == {(2, True): (428, 423), (4, True): (825, 819), (2, False): (302, 296)}
    shapes = {name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (3072, 33, 2, 2)
    assert shapes["patch_embed.pos_embedding"] == (1, 226 + 13 * 30 * 45, 3072)
    assert shapes["branch_blocks.1.weight"] == (3072, 3072)


def test_the_branch_has_the_keys_of_the_published_class():
    names = set(tiny_branch().state_dict())
    block = "transformer_blocks.1."
    assert {
        "patch_embed.proj.weight",
        "patch_embed.text_proj.bias",
        "patch_embed.pos_embedding",
        "patch_embed_ref.proj.weight",
        "patch_embed_ref.text_proj.weight",
        "patch_embed_ref.pos_embedding",
        "time_embedding.linear_1.weight",
        f"{block}norm1.linear.weight",
        f"{block}attn1.to_out.0.bias",
        f"{block}attn1.norm_q.weight",
        f"{block}attn_ref.to_k.weight",
        f"{block}norm_attn_ref.norm.weight",
        f"{block}norm_ref_intput.linear.bias",
        f"{block}ff.net.0.proj.weight",
        "branch_blocks.1.bias",
        "branch_x_embedder.weight",
        "norm_final.weight",
        "norm_out.linear.weight",
        "proj_out.weight",
    } <= names
    painter = set(tiny_branch(reference=False).state_dict())
    assert painter == {n for n in names if "_ref" not in n}


def test_a_branch_loads_strictly_and_comes_back(folder, tmp_path, inputs):
    branch = load_branch(folder / "branch")
    rope = rope_of(tiny_trunk())
    with torch.no_grad():
        first = branch(**inputs, rope=rope)
    write_model(tmp_path, {**COGVIDEOX, "num_layers": 2}, branch.state_dict(), shards=3)
    with torch.no_grad():
        again = load_branch(tmp_path)(**inputs, rope=rope)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, again, strict=True))
    tensors = dict(branch.state_dict())
    del tensors["transformer_blocks.0.norm_ref_intput.linear.weight"]
    write_model(tmp_path / "less", {**COGVIDEOX, "num_layers": 2}, tensors)
    with pytest.raises(StudioError, match="lacks .*norm_ref_intput"):
        load_branch(tmp_path / "less")


def test_a_branch_made_for_training_leaves_the_trunk_as_it_is(inputs):
    trunk = tiny_trunk()
    branch = EigentContextBranch.from_transformer(trunk, 2)
    rope = rope_of(trunk)
    plain = run_trunk(trunk, inputs, rope)
    with torch.no_grad():
        features = branch(**inputs, rope=rope)
    with injected(trunk.transformer_blocks, features, None):
        assert torch.equal(run_trunk(trunk, inputs, rope), plain)
    copied = branch.transformer_blocks[1].attn_ref.to_q.weight
    assert torch.equal(copied, trunk.transformer_blocks[1].attn1.to_q.weight)


def injected_by_hand(trunk, inputs, rope, features, extreme, index):
    """The oracle: the trunk's own parts, one after the other, with the sum written out."""
    temb = trunk.time_embedding(trunk.time_proj(inputs["timestep"]))
    shown = torch.cat([inputs["latents"], torch.zeros_like(inputs["latents"])], dim=2)
    tokens = trunk.patch_embed(inputs["text"], shown)
    text, hidden = tokens[:, :5], tokens[:, 5:]
    for j, block in enumerate(trunk.transformer_blocks):
        hidden, text = block(hidden, text, temb, rope)
        hidden = torch.where(extreme[None, :, None], hidden, hidden + features[index(j)])
    hidden = trunk.proj_out(trunk.norm_out(trunk.norm_final(hidden), temb=temb))
    out = hidden.reshape(1, 3, 3, 4, -1, 2, 2).permute(0, 1, 4, 2, 5, 3, 6)
    return out.flatten(5, 6).flatten(3, 4)


@pytest.mark.parametrize("blocks", [5, 4])
def test_feature_and_polarity_of_every_block(inputs, blocks):
    """Trap 1, j // ceil(n / L), and trap 2, added only where a token is not extreme."""
    trunk = tiny_trunk()
    trunk.transformer_blocks = trunk.transformer_blocks[:blocks]
    rope, features = rope_of(trunk), [torch.randn(1, 36, 32) for _ in range(2)]
    extreme = torch.rand(36) > 0.5
    with injected(trunk.transformer_blocks, features, extreme):
        found = run_trunk(trunk, inputs, rope)
    with torch.no_grad():
        step = {5: 3, 4: 2}[blocks]
        right = injected_by_hand(trunk, inputs, rope, features, extreme, lambda j: j // step)
        other_way = injected_by_hand(trunk, inputs, rope, features, ~extreme, lambda j: j // step)
        other_block = injected_by_hand(
            trunk, inputs, rope, features, extreme, lambda j: min(j // (step - 1), 1)
        )
    assert torch.allclose(found, right, atol=1e-4)
    assert not torch.allclose(found, other_way, atol=1e-2)
    assert not torch.allclose(found, other_block, atol=1e-2)
    assert not any(block._forward_hooks for block in trunk.transformer_blocks)


def test_extreme_everywhere_is_the_trunk_alone(inputs):
    trunk = tiny_trunk()
    rope, features = rope_of(trunk), [torch.randn(1, 36, 32) for _ in range(2)]
    plain = run_trunk(trunk, inputs, rope)
    with injected(trunk.transformer_blocks, features, torch.ones(36, dtype=torch.bool)):
        assert torch.equal(run_trunk(trunk, inputs, rope), plain)


def test_a_block_without_reference_is_the_stock_block(inputs):
    trunk = tiny_trunk()
    stock = trunk.transformer_blocks[0]
    block = EigentBlock(
        False,
        dim=32,
        num_attention_heads=2,
        attention_head_dim=16,
        time_embed_dim=8,
        attention_bias=True,
    )
    block.load_state_dict(stock.state_dict())
    hidden, text, temb = torch.randn(1, 36, 32), torch.randn(1, 5, 32), torch.randn(1, 8)
    rope = rope_of(trunk)
    for mine, theirs in zip(
        block.eval()(hidden, text, temb, rope, None), stock(hidden, text, temb, rope), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_looking_at_oneself_is_self_attention():
    trunk = tiny_trunk()
    attention, rope = trunk.transformer_blocks[0].attn1, rope_of(trunk)
    tokens = torch.randn(1, 36, 32)
    stock, _ = attention(
        hidden_states=tokens, encoder_hidden_states=tokens[:, :0], image_rotary_emb=rope
    )
    assert torch.allclose(reference_attention(attention, tokens, tokens, rope), stock, atol=1e-5)


def test_the_reference_counts_and_eig_regulates_it_on_request(inputs):
    branch, rope = tiny_branch(), rope_of(tiny_trunk())
    with torch.no_grad():
        plain = branch(**inputs, rope=rope)[1]
        without = branch(**{**inputs, "reference": None}, rope=rope)[1]
        regulated = branch(**inputs, rope=rope, beta=1.0)[1]
        middle = {**inputs, "eig": torch.full_like(inputs["eig"], 0.5)}
        same = branch(**middle, rope=rope, beta=1.0)[1]
        unregulated = branch(**middle, rope=rope)[1]
    assert not torch.allclose(plain, without, atol=1e-3)
    assert not torch.allclose(plain, regulated, atol=1e-4)
    assert torch.allclose(same, unregulated, atol=1e-6)


def test_the_reference_never_reaches_the_text(inputs):
    block = tiny_branch().transformer_blocks[0]
    hidden, text, temb = torch.randn(1, 36, 32), torch.randn(1, 5, 32), torch.randn(1, 8)
    first = block(hidden, text, temb, None, torch.randn(1, 36, 32))[1]
    block.norm2.linear.weight.data.zero_()  # the feed-forward mixes nothing across tokens
    second = block(hidden, text, temb, None, torch.randn(1, 36, 32))[1]
    third = block(hidden, text, temb, None, torch.randn(1, 36, 32))[1]
    assert torch.equal(second, third) and first.shape == second.shape


def run(generator):
    """The value a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def test_a_clip_begins_at_the_recorded_image_and_is_filled_by_repeating():
    batch, ramp = wall_batch(frames=3), wall_batch(frames=2, seed=4)
    anchor = torch.rand(36, 64, 3)
    batch = replace(batch, lead_in=ramp, anchor=anchor)
    clip, warped = run(build_clip(batch, Cues(), (48, 64), 0.1))
    assert clip.lead == 2 and len(clip.renders) == 5 and len(warped) == 3
    assert torch.equal(clip.box.take(clip.renders[:1])[0].permute(1, 2, 0), anchor)
    assert float(clip.eig[0].max()) == 0 < float(clip.eig[1].max())
    without, _ = run(build_clip(replace(batch, lead_in=None), Cues(), (48, 64), 0.1))
    assert not torch.equal(without.renders[0], clip.renders[0])
    from faithfusion_studio.repair.clips import Window

    made = torch.rand(4, 3, 48, 64)
    part, count = windowed(clip, made, Window(2, 5, 2), 9)
    assert count == 3 and len(part.renders) == 9
    assert torch.equal(part.renders[:2], made[2:4]) and not part.eig[:2].any()
    assert torch.equal(part.renders[8], clip.renders[4])


def test_windows_reach_over_any_length_and_nothing_is_lost(engine):
    result = repair_batch(engine, wall_batch(frames=12), OPEN)
    assert result.rgb.shape[0] == 12
    assert float(result.rgb.std()) > 0


def test_soft_keep_and_strength_bring_the_result_nearer_to_the_render(folder, engine):
    batch = wall_batch()
    batch = replace(
        batch, released_eig=torch.zeros_like(batch.eig), coverage=torch.ones_like(batch.coverage)
    )
    free = repair_batch(engine, batch, OPEN).rgb
    kept = CogVideoXRepairer.from_pretrained(folder, CogVideoXConfig(steps=2, soft_keep=True))
    near = repair_batch(kept, batch, OPEN).rgb
    assert not torch.equal(free, near)
    mid = CogVideoXRepairer.from_pretrained(folder, CogVideoXConfig(steps=4, strength=0.5))
    steps = [item.done for item in mid.repair(batch) if isinstance(item, RepairStep)]
    assert steps == [0, 3, 4, 5]


def test_with_everything_kept_latents_end_as_the_renders(folder, engine):
    """EIG 0 and soft keep: the last blend leaves nothing of the noise."""
    kept = CogVideoXRepairer.from_pretrained(folder, CogVideoXConfig(steps=2, soft_keep=True))
    shown = torch.randn(1, 3, 16, 6, 8)
    eig = torch.zeros(1, 3, 1, 6, 8)
    assert torch.allclose(
        run(kept._denoise(shown, shown[:, :1], shown, eig, 0, 9)), shown, atol=1e-5
    )


def test_videopainters_branch_sees_a_hole_and_its_mask(tmp_path):
    engine = CogVideoXRepairer.from_pretrained(
        write_cogvideox(tmp_path, reference=False), CogVideoXConfig(steps=1, blob_radius=1)
    )
    clip, _ = run(build_clip(wall_batch(), Cues(), engine.size, 0.1))
    shown, mask = engine._condition(clip)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((shown.permute(0, 2, 3, 1)[mask > 0] == 0.5).all())
    assert torch.equal(
        shown.permute(0, 2, 3, 1)[mask == 0], clip.renders.permute(0, 2, 3, 1)[mask == 0]
    )
    assert repair_batch(engine, wall_batch(), OPEN).rgb.shape == wall_batch().renders.shape


def test_it_stops_within_a_step_and_leaves_the_trunk_clean(engine):
    steps = engine.repair(wall_batch())
    told = [next(steps) for _ in range(2)]
    assert [(step.done, step.total, step.what) for step in told] == [
        (0, 4, "encoding"),
        (1, 4, "denoising"),
    ]
    steps.close()
    assert not any(block._forward_hooks for block in engine.trunk.transformer_blocks)
    kinds = [type(item) for item in engine.repair(wall_batch())]
    assert kinds == [RepairStep] * 4 + [FrameRepair] * 2


def test_blocks_can_visit_the_device_one_by_one_and_nothing_changes(folder, engine):
    visiting = CogVideoXRepairer.from_pretrained(folder, CogVideoXConfig(steps=2, profile="blocks"))
    batch = wall_batch()
    assert torch.equal(
        repair_batch(visiting, batch, OPEN).rgb, repair_batch(engine, batch, OPEN).rgb
    )
    assert not any(block._forward_pre_hooks for block in visiting.trunk.transformer_blocks)


def test_on_a_cpu_the_published_size_is_hopeless_in_a_sentence():
    hours = CogVideoXRepairer.full_size_seconds(40, 360, 640, "cpu") / 3600
    assert hours > 9
    assert CogVideoXRepairer.full_size_seconds(40, 360, 640, "cuda") < 600


def test_the_vae_of_the_layout_is_the_stock_class(folder):
    vae = build("AutoencoderKLCogVideoX", COGVIDEOX_VAE, device="cpu")
    assert vae.config.scaling_factor == 0.7
