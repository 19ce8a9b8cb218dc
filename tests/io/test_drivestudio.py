"""DriveStudio checkpoints against an independent writer and a step-by-step oracle."""

import numpy as np
import pytest
import torch
from reference import slow_drivestudio as slow

from faithfusion_studio.bench.robustness.samples import whole_scene
from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import reason_of
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.io import load_scene, save_scene, sniff
from faithfusion_studio.io.checkpoints import CheckpointError, read_torch_file
from faithfusion_studio.io.drivestudio_looks import _cube_index, _opengl_texel
from faithfusion_studio.motion import DeformField, PeriodicVibration, SkinnedBody
from faithfusion_studio.render import render_view
from faithfusion_studio.sky import CubemapSky, MlpSky
from faithfusion_studio.transforms import look_at, quat_to_rotmat


@pytest.fixture
def written(tmp_path):
    def write(content, name="checkpoint_30000.pth"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return write


def a_camera(time: float = 0.0) -> Camera:
    pose = look_at(*torch.tensor([[-9.0, 0.5, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.float64))
    K = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 48, 32, time=time)


@pytest.mark.parametrize("voxel", [False, True], ids=["weights", "grid"])
@pytest.mark.parametrize("frame", range(slow.FRAMES))
def test_every_class_is_placed_as_the_oracle_places_it(written, frame, voxel):
    content = slow.make_checkpoint()
    if voxel:
        content = slow.voxel_skin(content)
    scene = load_scene(written(content))
    world = scene.at(frame * 0.1).gaussians
    want = slow.placed(content, frame)
    shown = world.opacities > 0
    np.testing.assert_allclose(world.means[shown], want["means"], atol=2e-5)
    np.testing.assert_allclose(world.opacities[shown], want["opacities"], atol=1e-6)
    np.testing.assert_allclose(world.scales[shown], want["scales"], rtol=1e-5)
    np.testing.assert_allclose(quat_to_rotmat(world.quats[shown]), want["rotations"], atol=5e-5)


def test_nodes_are_told_apart_and_empty_instances_left_out(written):
    scene = load_scene(written(slow.make_checkpoint()))
    assert [node.name for node in scene.nodes] == [
        "vehicle 0", "vehicle 2", "pedestrian 0", "pedestrian 1", "cyclist 0", "cyclist 1",
    ]  # fmt: skip
    motions = [type(node.motion) for node in scene.nodes]
    assert motions == [type(None)] * 2 + [SkinnedBody] * 2 + [DeformField] * 2
    assert not any(node.turns_colors for node in scene.nodes)
    assert all(len(node.timestamps) == slow.FRAMES for node in scene.nodes)


def test_early_checkpoints_neither_deform_nor_use_all_bands(written):
    content = slow.make_checkpoint(step=1500)
    scene = load_scene(written(content))
    assert scene.background.sh_degree == 1
    assert all(not isinstance(node.motion, DeformField) for node in scene.nodes)
    np.testing.assert_allclose(
        scene.at(0.2).gaussians.means, slow.placed(content, 2)["means"], atol=2e-5
    )


def test_the_sky_network_and_the_affine_row(written):
    content = slow.make_checkpoint()
    scene = load_scene(written(content))
    assert isinstance(scene.sky, MlpSky)
    for seed in range(4):
        direction = np.random.default_rng(seed).normal(size=3)
        direction /= np.linalg.norm(direction)
        got = scene.sky.radiance(torch.tensor(direction, dtype=torch.float32))
        np.testing.assert_allclose(
            got, slow.sky_color(content["models"]["Sky"], direction), atol=1e-5
        )
    table = content["models"]["Affine"]
    mean = table["embedding.weight"].double().mean(0).numpy()
    np.testing.assert_allclose(scene.tone, slow.affine(table, mean), atol=1e-5)


def test_faithfusion_checkpoints_use_the_first_row_and_tell_what_was_added(written):
    content = slow.make_checkpoint(fusion=True)
    scene = load_scene(written(content))
    table = content["models"]["Affine"]
    first = table["embedding.weight"][0].double().numpy()
    np.testing.assert_allclose(scene.tone, slow.affine(table, first), atol=1e-5)
    recorded = scene.background.provenance == int(Provenance.RECORDED)
    assert torch.equal(recorded, content["Background_origin_mask"])


def test_a_picture_is_gaussians_before_the_sky_through_the_affine_row(written):
    content = slow.make_checkpoint()
    scene = load_scene(written(content))
    camera = a_camera(0.3)
    view = render_view(scene, camera)
    plain = render_view(load_scene(written(_without(content, "Affine"), "plain.pth")), camera)
    assert 0.05 < float(plain.alpha.mean()) < 0.95
    want = plain.rgb @ scene.tone[:, :3].T + scene.tone[:, 3]
    unclamped = (plain.rgb > 0).all(-1) & (plain.rgb < 1).all(-1)
    torch.testing.assert_close(view.rgb[unclamped], want.clamp(0, 1)[unclamped], atol=1e-5, rtol=0)
    rest = view.alpha == 0
    assert bool(rest.any()), "some pixels show the sky alone"


def _without(content, name):
    return {**content, "models": {k: v for k, v in content["models"].items() if k != name}}


def test_a_round_trip_shows_the_same_picture_bit_for_bit(written, tmp_path):
    content = slow.make_checkpoint(fusion=True)
    content = _without(_without(content, "SMPLNodes"), "DeformableNodes")
    scene = load_scene(written(content))
    lost = save_scene(scene, tmp_path / "again.pth")
    again = load_scene(tmp_path / "again.pth")
    assert lost == []
    for frame in range(slow.FRAMES):
        before, after = (render_view(s, a_camera(frame * 0.1)) for s in (scene, again))
        assert torch.equal(before.rgb, after.rgb) and torch.equal(before.depth, after.depth)
    assert torch.equal(scene.background.provenance, again.background.provenance)
    assert torch.equal(scene.tone, again.tone)
    for name, tensor in scene.extra_tensors.items():
        assert torch.equal(tensor, again.extra_tensors[name])
    raw = torch.load(tmp_path / "again.pth", weights_only=True)  # noqa: TID251 (our own file)
    assert type(raw["step"]) is int and raw["step"] == 30_000


def test_what_the_layout_cannot_hold_is_said(written, tmp_path):
    scene = load_scene(written(slow.make_checkpoint()))
    (sentence,) = save_scene(scene, tmp_path / "out.pth")
    assert "pedestrian 0" in sentence and "cyclist 1" in sentence
    assert [n.name for n in load_scene(tmp_path / "out.pth").nodes] == ["vehicle 0", "vehicle 1"]


def test_the_native_file_keeps_every_motion_and_look(written, tmp_path):
    scene = load_scene(written(slow.voxel_skin(slow.make_checkpoint())))
    save_scene(scene, tmp_path / "scene.ckpt")
    again = load_scene(tmp_path / "scene.ckpt")
    for time in (0.0, 0.13, 0.4):
        a, b = scene.at(time).gaussians, again.at(time).gaussians
        assert torch.equal(a.means, b.means) and torch.equal(a.quats, b.quats)
    assert torch.equal(render_view(scene, a_camera()).rgb, render_view(again, a_camera()).rgb)
    assert set(again.extra_tensors) == set(scene.extra_tensors)


def test_vibrating_gaussians_swing_and_fade(written):
    content = _without(slow.make_checkpoint(), "RigidNodes")
    background, n = content["models"]["Background"], 30
    g = torch.Generator().manual_seed(3)
    background |= {
        "_taus": torch.rand(n, 1, generator=g) * 0.1,
        "_betas": torch.randn(n, 1, generator=g) - 3,
        "_velocity": torch.randn(n, 3, generator=g),
    }
    scene = load_scene(written(content))
    node = scene.nodes[0]
    assert isinstance(node.motion, PeriodicVibration) and len(scene.background) == 0
    now, a = 3 * 0.02, 2 * np.pi / 0.2
    late = now - background["_taus"].double().numpy()
    want = (
        background["_means"].double().numpy()
        + background["_velocity"].numpy() * np.sin(late * a) / a
    )
    fade = np.exp(-0.5 * late**2 / np.exp(background["_betas"].double().numpy()) ** 2)[:, 0]
    got = node.placed_at(0.3)
    np.testing.assert_allclose(got.means, want, atol=1e-5)
    opacity = 1 / (1 + np.exp(-background["_opacities"].double().numpy()[:, 0]))
    np.testing.assert_allclose(got.opacities, np.where(fade > 0.05, opacity * fade, 0), atol=1e-5)
    assert (fade < 0.05).any() and (fade > 0.05).any()


def test_an_environment_map_shows_each_texel_where_opengl_does(written, tmp_path):
    resolution = 4
    base = torch.rand(6, resolution, resolution, 3, generator=torch.Generator().manual_seed(0))
    content = slow.make_checkpoint()
    content["models"]["Sky"] = {"base": base}
    scene = load_scene(written(content))
    assert isinstance(scene.sky, CubemapSky)
    index = _cube_index(resolution)
    assert sorted(index.tolist()) == list(range(6 * resolution**2))
    # Straight along the axes, world (x, z, -y) to OpenGL's faces +x -x +y -y +z -z.
    for face, gl in enumerate(
        torch.eye(3).repeat_interleave(2, 0) * torch.tensor([1, -1] * 3)[:, None]
    ):
        assert int(_opengl_texel(gl[None] + 1e-3, resolution)[0]) // resolution**2 == face
    corner = torch.tensor(
        [[1.0, 0.9, 0.9]]
    )  # OpenGL +x face: s = -z, t = -y, so first row and column
    assert int(_opengl_texel(corner, resolution)[0]) == 0
    x, gy, gz = 1.0, 0.75, 0.75  # a texel centre; in the world (x, y, z) = (1, -gz, gy)
    world = torch.nn.functional.normalize(torch.tensor([x, -gz, gy]), dim=0)
    torch.testing.assert_close(scene.sky.radiance(world), base[0, 0, 0])
    save_scene(scene, tmp_path / "sky.pth")
    back = torch.load(tmp_path / "sky.pth", weights_only=True)  # noqa: TID251 (our own file)
    assert torch.equal(back["models"]["Sky"]["base"], base)


def test_settings_come_from_the_config_as_plain_data(written, tmp_path):
    content = _without(slow.make_checkpoint(), "RigidNodes")
    n = 30
    zeros = {"_taus": torch.zeros(n, 1), "_betas": torch.zeros(n, 1), "_velocity": torch.ones(n, 3)}
    content["models"]["Background"] |= zeros
    (tmp_path / "config.yaml").write_text(
        "model:\n  Background:\n    ctrl: {cycle_length: 0.4, time_interval: 0.05}\n"
    )
    motion = load_scene(written(content)).nodes[0].motion
    assert (motion.cycle_length, motion.time_per_second) == (0.4, 0.5)
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system ['false']\n")
    assert load_scene(tmp_path / "checkpoint_30000.pth").nodes[0].motion.cycle_length == 0.2


def _broken(content, change):
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(models=[1]), "models is a list"),
        (lambda c: c["models"]["Background"].pop("_quats"), "_quats"),
        (lambda c: c["models"]["RigidNodes"].pop("points_ids"), "points_ids"),
        (lambda c: c["models"]["RigidNodes"]["points_ids"].fill_(7), "one of 3 instances"),
        (lambda c: c["models"]["RigidNodes"].pop("instances_fv"), "instances_fv"),
        (lambda c: c["models"]["SMPLNodes"].pop("template._template_layer.parents"), "parents"),
        (lambda c: c["models"]["Sky"].pop("sky_head.layers.1.weight"), "sky_head"),
        (lambda c: c["models"].clear(), "holds nothing"),
        (lambda c: c.update(step="x"), "step"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(written, change, word):
    path = written(_broken(slow.make_checkpoint(), change))
    assert sniff(path) == "drivestudio"
    with pytest.raises(CheckpointError) as error:
        load_scene(path)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_broken_gaussians_are_left_out_with_a_count(written):
    content = slow.make_checkpoint()
    content["models"]["Background"]["_means"][:3] = float("nan")
    content["models"]["SMPLNodes"]["_scales"][1] = float("nan")
    scene = load_scene(written(content))
    assert len(scene.background) == 27 and "4 of" in scene.metadata["notes"][0]
    assert len(scene.nodes[2].motion.weights) == len(scene.nodes[2].gaussians) == 5
    assert torch.isfinite(scene.at(0.1).gaussians.means).all()


def test_a_node_class_that_nobody_knows_is_left_out_with_a_count(tmp_path):
    save_scene(whole_scene(24), tmp_path / "a.pth")
    content = read_torch_file(tmp_path / "a.pth")
    content["models"]["Backgroundd"] = content["models"].pop("Background")
    torch.save(content, tmp_path / "b.pth")
    found = load_scene(tmp_path / "b.pth")
    assert found.num_gaussians == 6
    assert found.metadata["notes"][0] == (
        "18 of 24 Gaussians were left out because their node class 'Backgroundd' is not known."
    )
    content["models"]["RigidNodes"].pop("_means")
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="'RigidNodes' has opacities but lacks _means"):
        load_scene(tmp_path / "c.pth")


def test_a_reason_is_a_line_also_where_an_error_says_nothing():
    assert reason_of(EOFError()) == "EOFError"
    assert reason_of(ValueError("one\ntwo")) == "one" and reason_of(ValueError("abc"), 2) == "ab"
    assert reason_of(FileNotFoundError(2, "No such file", "x")) == "No such file"
