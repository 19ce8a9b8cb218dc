"""Difix on stock classes: layouts, adapters, skips, joint attention, the one step, and refusals."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import (
    LORA_LAYERS,
    UNET,
    VAE,
    adapted,
    need_diffusers,
    randomise,
    tiny_vae,
    write_difix,
    write_difix_training,
    write_model,
)
from torch.nn import functional
from wall_world import wall_batch

need_diffusers()

from faithfusion_studio.errors import StudioError  # noqa: E402
from faithfusion_studio.io.model_folders import read_tensors  # noqa: E402
from faithfusion_studio.repair import MissingWeightsError, RepairError, repair_batch  # noqa: E402
from faithfusion_studio.repair.base import FrameRepair, RepairStep  # noqa: E402
from faithfusion_studio.repair.diffusers_models import build, count_parameters  # noqa: E402
from faithfusion_studio.repair.difix import DifixConfig, DifixRepairer, load_difix  # noqa: E402
from faithfusion_studio.repair.difix_networks import (  # noqa: E402
    DifixUnet,
    SkipVae,
    add_skips,
    kept_signal,
    load_skip_vae,
    load_unet,
    one_step,
    widen_for_eig,
)
from faithfusion_studio.repair.gate import GateConfig  # noqa: E402
from faithfusion_studio.repair.lora import fold_lora  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_difix(tmp_path_factory.mktemp("difix"))


@pytest.fixture(scope="module")
def unet():
    return randomise(build("UNet2DConditionModel", UNET, device="cpu"))


def test_the_full_size_layout_has_the_published_size():
    widths = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    vae = build("AutoencoderKL", {**VAE, **widths, "norm_num_groups": 32})
    assert count_parameters(vae) == 83_653_863
    add_skips(vae)
    shapes = [tuple(getattr(vae.decoder, f"skip_conv_{i}").weight.shape[:2]) for i in (1, 2, 3, 4)]
    assert shapes == [(512, 512), (512, 256), (512, 128), (256, 128)]
    layers = [
        module
        for name, module in vae.named_modules()
        if "decoder" in name and any(name.endswith(end) for end in LORA_LAYERS)
    ]
    adapters = sum(
        4 * (m.weight[0].numel() + m.weight.shape[0]) for m in layers
    )  # A is [4, in, k, k], B is [out, 4]
    assert len(layers) == 43
    whole = count_parameters(vae) + adapters
    assert round(whole / 1e6, 2) == 84.67 and round(4 * whole / 1e6, 1) == 338.7
    published = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
    unet = build("UNet2DConditionModel", {**published, "use_linear_projection": True})
    assert count_parameters(unet) == 865_910_724


def test_the_noise_level_and_the_closed_form_are_those_of_the_scheduler():
    from diffusers import DDPMScheduler

    assert kept_signal() == pytest.approx(0.755, abs=5e-4)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    scheduler.set_timesteps(timesteps=[199])
    latent, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    theirs = scheduler.step(noise, 199, latent).pred_original_sample
    assert torch.allclose(one_step(latent, noise), theirs, atol=1e-5)


def test_a_folded_adapter_equals_the_adapter_beside_its_layer():
    generator = torch.Generator().manual_seed(0)
    for kernel in ((), (1, 1), (3, 3)):
        weight = torch.randn(6, 5, *kernel, generator=generator)
        a = torch.randn(4, 5, *kernel, generator=generator)
        b = torch.randn(6, 4, *(1 for _ in kernel), generator=generator)
        folded = fold_lora(
            {
                "layer.base_layer.weight": weight,
                "layer.lora_A.vae_skip.weight": a,
                "layer.lora_B.vae_skip.weight": b,
            }
        )
        assert list(folded) == ["layer.weight"]
        if kernel:
            x = torch.randn(2, 5, 8, 8, generator=generator)
            pad = kernel[0] // 2
            base, low = (functional.conv2d(x, w, padding=pad) for w in (weight, a))
            beside = base + 2 * functional.conv2d(low, b)
            inside = functional.conv2d(x, folded["layer.weight"], padding=pad)
        else:
            x = torch.randn(2, 5, generator=generator)
            beside = x @ weight.T + 2 * (x @ a.T) @ b.T
            inside = x @ folded["layer.weight"].T
        assert torch.allclose(beside, inside, atol=1e-5 * float(beside.abs().max()))


def test_the_vae_loads_strictly_folded_and_comes_back(folder, tmp_path):
    vae = load_skip_vae(folder / "vae")
    folded = fold_lora(read_tensors(folder / "vae"))
    assert not [name for name in folded if "lora" in name or "base_layer" in name]
    assert vae.vae.state_dict().keys() == folded.keys()
    write_model(tmp_path, VAE, vae.vae.state_dict(), shards=2)
    again = load_skip_vae(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(vae.decode(vae.encode(image)), again.decode(again.encode(image)))


def test_skips_reach_the_decoder_and_belong_to_the_image_encoded_last():
    vae = SkipVae(tiny_vae())
    first, second = torch.rand(2, 1, 3, 32, 32)
    latent = vae.encode(first)
    one = vae.decode(latent)
    vae.encode(second)
    other = vae.decode(latent)
    assert not torch.allclose(one, other, atol=1e-4)
    stock = vae.vae
    for i in (1, 2, 3, 4):
        torch.nn.init.zeros_(getattr(stock.decoder, f"skip_conv_{i}").weight)
    vae.encode(first)
    one = vae.decode(latent)
    vae.encode(second)
    assert torch.equal(one, vae.decode(latent))


def test_each_skip_is_added_before_its_block():
    """The oracle runs the blocks by hand, as the published forks of encoder and decoder do."""
    model = tiny_vae()
    encoder, decoder, image = model.encoder, model.decoder, torch.rand(1, 3, 32, 32)
    sample, inputs = encoder.conv_in(2 * image - 1), []
    for block in encoder.down_blocks:
        inputs.append(sample)
        sample = block(sample)
    latent = torch.randn(1, 4, 4, 4)
    sample = decoder.mid_block(decoder.conv_in(model.post_quant_conv(latent)))
    for i, block in enumerate(decoder.up_blocks):
        sample = block(sample + getattr(decoder, f"skip_conv_{i + 1}")(inputs[::-1][i]))
    expected = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(sample)))
    vae = SkipVae(model)
    vae.encode(image)
    found = vae.decode(latent * vae.scaling)
    assert torch.allclose(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_a_stock_vae_is_refused_by_name(tmp_path):
    folder = write_difix(tmp_path, stock_vae=True)
    with pytest.raises(RepairError, match="stock autoencoder, it lacks decoder.skip_conv_1"):
        DifixRepairer.from_pretrained(folder)


@pytest.mark.parametrize("spoil", ["missing", "unknown", "shape"])
def test_a_vae_that_does_not_fit_is_refused(tmp_path, spoil):
    tensors = adapted(tiny_vae())
    name = "encoder.conv_out.bias"
    if spoil == "missing":
        del tensors[name]
    elif spoil == "unknown":
        tensors["encoder.conv_extra.bias"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3)
    write_model(tmp_path, VAE, tensors)
    with pytest.raises(StudioError, match="encoder.conv_"):
        load_skip_vae(tmp_path)


def test_one_view_and_identical_views_equal_the_stock_unet(unet):
    latent, prompt = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    with torch.no_grad():
        stock = unet(latent, torch.tensor([199]), encoder_hidden_states=prompt).sample
        joint = DifixUnet(unet)
        one = joint.noise(latent, prompt)
        three = joint.noise(latent.expand(3, -1, -1, -1).contiguous(), prompt)
        assert torch.equal(one, stock)
        assert torch.allclose(three, stock.expand(3, -1, -1, -1), atol=1e-5)
        mixed = joint.noise(torch.cat([latent, torch.randn(1, 4, 8, 8)]), prompt)
        assert not torch.allclose(mixed[:1], stock, atol=1e-4)


def test_joint_attention_is_one_attention_over_all_tokens():
    from faithfusion_studio.repair.diffusers_models import diffusers_class
    from faithfusion_studio.repair.difix_networks import Attending, joint_processor

    attention = diffusers_class("models").attention_processor.Attention(8, heads=2, dim_head=4)
    tokens = torch.randn(2 * 3, 5, 8)
    expected = attention(tokens.reshape(2, 15, 8)).reshape(6, 5, 8)
    attending = Attending()
    attending.start(3, None)
    attention.set_processor(joint_processor(attending, True))
    assert torch.allclose(attention(tokens), expected, atol=1e-6)


def test_the_surgery_for_eig_leaves_the_convolutions_output(unet):
    wide = widen_for_eig(unet.state_dict())
    latent, eig = torch.randn(2, 4, 8, 8), torch.rand(2, 1, 8, 8)
    shown = torch.cat([latent, eig, latent * eig], 1)
    weight, bias = (unet.state_dict()[f"conv_in.{kind}"] for kind in ("weight", "bias"))
    assert torch.allclose(
        functional.conv2d(shown, wide["conv_in.weight"], bias, padding=1),
        functional.conv2d(latent, weight, bias, padding=1),
        atol=1e-6,
    )
    assert wide["conv_out.weight"].shape[0] == 5 and not wide["conv_out.weight"][4].any()
    eight = DifixUnet(unet)
    prompt = torch.randn(1, 7, 16)
    before = eight.noise(latent, prompt)
    nine = randomise(
        build("UNet2DConditionModel", {**UNET, "in_channels": 9, "out_channels": 5}, device="cpu")
    )
    nine.load_state_dict(wide)
    assert torch.allclose(DifixUnet(nine).noise(latent, prompt), before, atol=1e-6)


def test_eig_scales_the_features_of_both_attentions(tmp_path):
    """Against the published block: normed features times 1 + 0.3 EIG before attn1 and attn2."""
    from faithfusion_studio.repair.difix_networks import Attending, attend_jointly

    unet = randomise(build("UNet2DConditionModel", UNET, device="cpu"))
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    attending = Attending()
    hidden, text, eig = torch.randn(1, 16, 16), torch.randn(1, 7, 16), torch.rand(1, 1, 8, 8)
    gain = 1 + 0.3 * functional.interpolate(eig, (4, 4), mode="bilinear").flatten(2).mT
    state = hidden + block.attn1(block.norm1(hidden) * gain)
    state = state + block.attn2(block.norm2(state) * gain, encoder_hidden_states=text)
    expected = state + block.ff(block.norm3(state))
    attend_jointly(unet, attending)
    attending.start(1, eig)
    assert torch.allclose(block(hidden, encoder_hidden_states=text), expected, atol=1e-5)


@pytest.mark.parametrize("eig", [True, False], ids=["eig-difix", "difix3d"])
def test_training_files_load_on_top_of_a_folder(folder, tmp_path, eig):
    path = write_difix_training(tmp_path / "model_last.pkl", eig=eig)
    engine = DifixRepairer.from_pretrained(folder, training=path)
    plain = DifixRepairer.from_pretrained(folder)
    assert engine.unet.uses_eig is eig and not plain.unet.uses_eig
    trained = engine.vae.vae.state_dict()
    base = plain.vae.vae.state_dict()
    assert torch.equal(trained["encoder.conv_in.weight"], base["encoder.conv_in.weight"])
    assert not torch.equal(trained["decoder.conv_in.weight"], base["decoder.conv_in.weight"])
    batch = wall_batch()
    first = repair_batch(engine, batch, GateConfig(drift_limit=9.0))
    second = repair_batch(engine, replace(batch, eig=batch.eig * 0), GateConfig(drift_limit=9.0))
    assert torch.equal(first.rgb, second.rgb) is not eig


def test_a_training_file_that_runs_code_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'canary')!r}, 'w')",))

    path = tmp_path / "model_last.pkl"
    torch.save({"state_dict_unet": Trap(), "state_dict_vae": {}}, path)
    with pytest.raises(StudioError, match="asks to run"):
        DifixRepairer.from_pretrained(folder, training=path)
    torch.save({"weights": {}}, path)
    with pytest.raises(RepairError, match="has no state_dict_unet"):
        DifixRepairer.from_pretrained(folder, training=path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("trap", ["python", "auto_map", "pickle", "outside", "module"])
def test_folders_that_carry_code_are_refused_and_nothing_runs(tmp_path, trap):
    folder, canary = write_difix(tmp_path / "model"), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    match trap:
        case "python":
            (folder / "vae" / "autoencoder_kl.py").write_text(code)
        case "auto_map":
            config = {**UNET, "auto_map": {"AutoModel": "evil.Model"}}
            (folder / "unet" / "config.json").write_text(json.dumps(config))
        case "pickle":
            weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
        case "outside":
            index = {"weight_map": {"conv_in.weight": "../../evil.safetensors"}}
            weights.unlink()
            (folder / "unet" / f"{weights.name}.index.json").write_text(json.dumps(index))
        case "module":
            (folder / "unet" / "model.so").write_bytes(b"\x7fELF")
    with pytest.raises(StudioError):
        DifixRepairer.from_pretrained(folder)
    assert not canary.exists()


def test_references_are_shown_and_change_the_result(folder):
    gate, batch = GateConfig(drift_limit=9.0), wall_batch()
    results = [
        repair_batch(DifixRepairer.from_pretrained(folder, config), batch, gate).rgb
        for config in (
            DifixConfig(warped_reference=False),
            DifixConfig(),
            DifixConfig(recorded_references=2),
        )
    ]
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_it_can_be_stopped_within_a_step(folder):
    engine, batch = DifixRepairer.from_pretrained(folder), wall_batch()
    steps = engine.repair(batch)
    assert next(steps) == RepairStep(0, 3, "encoding")
    steps.close()
    kinds = [type(item) for item in engine.repair(batch)]
    assert kinds == [RepairStep, RepairStep, RepairStep, FrameRepair] * 2


def test_the_prompt_is_encoded_once_and_the_encoder_dropped(tmp_path):
    pytest.importorskip("transformers")
    from faithfusion_studio.repair.prompts import prompt_embedding

    folder = write_difix(tmp_path, prompt=False)
    with pytest.raises(MissingWeightsError, match="could be made once"):
        DifixRepairer.from_pretrained(folder)
    write_clip(folder)
    first = prompt_embedding(folder, "remove degradation", "CLIPTextModel", length=9)
    assert first.shape == (1, 9, 16) and (folder / "prompt_embeds.safetensors").is_file()
    for path in (folder / "text_encoder").iterdir():
        path.unlink()
    again = prompt_embedding(folder, "remove degradation", "CLIPTextModel", length=9)
    assert torch.equal(first, again)
    with pytest.raises(RepairError, match="cannot be used"):
        prompt_embedding(folder, "another prompt", "CLIPTextModel", length=9)


def write_clip(folder):
    import transformers

    letters = sorted({*"removdgatin", *(f"{c}</w>" for c in "removdgatin")})
    words = {w: i for i, w in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), num_attention_heads=2, max_position_embeddings=77, **size
    )
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def test_without_weights_it_says_what_how_big_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("FF_STUDIO_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("FF_STUDIO_SETTINGS", str(tmp_path / "settings.json"))
    with pytest.raises(MissingWeightsError, match=r"difix_ref/unet .*3\.5 GB.*non-commercial"):
        load_difix()
    write_difix(tmp_path / "weights" / "difix_ref")
    from faithfusion_studio.repair.model_store import CATALOG, LicenceError, accept_licence

    with pytest.raises(LicenceError, match="--accept difix"):
        load_difix()
    accept_licence(CATALOG["difix"])
    result = repair_batch(load_difix(), wall_batch(frames=1))
    assert any("NVIDIA" in note and "accepted on 20" in note for note in result.notes)
    sums = tmp_path / "weights" / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  difix_ref/unet/diffusion_pytorch_model.safetensors\n")
    with pytest.raises(RepairError, match="its SHA-256 differs"):
        load_difix()


def test_unets_of_other_models_are_refused(tmp_path):
    config = {**UNET, "in_channels": 8}
    write_model(tmp_path, config, build("UNet2DConditionModel", config, device="cpu").state_dict())
    with pytest.raises(RepairError, match="takes 8 channels"):
        load_unet(tmp_path)
