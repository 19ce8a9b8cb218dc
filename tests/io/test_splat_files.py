from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gaussians import random_gaussians

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import load_scene, read_compressed_ply, read_ply, write_ply
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.transforms import rgb_to_sh0

NAMES = ["x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2"]
NAMES += [f"rot_{i}" for i in range(4)] + [f"f_dc_{i}" for i in range(3)]


def assert_same(a: Gaussians, b: Gaussians) -> None:
    for name in ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN", "provenance"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def columns_of(g: Gaussians) -> dict[str, np.ndarray]:
    """Inria's properties of a set of Gaussians, with f_rest channel by channel."""
    rest = g.shN.transpose(1, 2).flatten(1)
    table = torch.cat(
        [g.means, g.logit_opacities[:, None], g.log_scales, g.quats, g.sh0[:, 0], rest], dim=1
    ).numpy()
    names = NAMES + [f"f_rest_{i}" for i in range(rest.shape[1])]
    return dict(zip(names, table.T, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 2**20))
def test_a_ply_comes_back_bit_for_bit(tmp_path_factory, count, degree, seed):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    gaussians = random_gaussians(count, degree, seed)
    write_ply(gaussians, path)
    again, dropped = read_ply(path)
    assert dropped == 0
    assert_same(again, gaussians.with_sh_degree(3))


def test_our_ply_is_what_inria_readers_expect(tmp_path):
    plyfile = pytest.importorskip("plyfile")
    gaussians = random_gaussians(5, 3)
    write_ply(gaussians, tmp_path / "a.ply")
    vertex = plyfile.PlyData.read(tmp_path / "a.ply")["vertex"]
    names = [p.name for p in vertex.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:62] == [
        "opacity",
        "scale_0",
        "scale_1",
        "scale_2",
        "rot_0",
        "rot_1",
        "rot_2",
        "rot_3",
    ]
    assert names[62:] == ["provenance"]
    assert {vertex[n].dtype for n in names} == {
        np.dtype("<f4")
    }  # Niantic's tools take nothing else
    np.testing.assert_array_equal(vertex["f_rest_15"], gaussians.shN[:, 0, 1])  # first green value


def test_what_was_recorded_alone_is_written_as_exactly_the_62_values_of_inria(tmp_path):
    gaussians = random_gaussians(5, 3)
    recorded = replace(gaussians, provenance=torch.zeros(5, dtype=torch.uint8))
    write_ply(recorded, tmp_path / "a.ply")
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[0]
    assert header.count(b"property float") == 62 and b"provenance" not in header
    assert (tmp_path / "a.ply").stat().st_size == len(header) + len("end_header\n") + 5 * 62 * 4
    assert_same(read_ply(tmp_path / "a.ply")[0], recorded)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("text", [True, False])
def test_files_of_others_are_read_by_property_name(tmp_path, degree, text):
    plyfile = pytest.importorskip("plyfile")
    gaussians = random_gaussians(6, degree, seed=degree)
    columns = columns_of(gaussians)
    order = sorted(columns, reverse=True)
    rows = np.zeros(6, [("extra", "i2"), *((n, "f8" if n == "x" else "f4") for n in order)])
    for name in order:
        rows[name] = columns[name]
    elements = [
        plyfile.PlyElement.describe(np.zeros(2, [("a", "u1")]), "before"),
        plyfile.PlyElement.describe(rows, "vertex"),
        plyfile.PlyElement.describe(np.zeros(3, [("b", "f8")]), "after"),
    ]
    plyfile.PlyData(elements, text=text, comments=["Vertical Axis: z"]).write(tmp_path / "a.ply")
    again, dropped = read_ply(tmp_path / "a.ply")
    assert dropped == 0
    torch.testing.assert_close(again.shN, gaussians.shN, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.means, gaussians.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.quats, gaussians.quats, rtol=1e-6, atol=1e-6)


def write_rows(path, rows: np.ndarray, form: str = "binary_little_endian", count=None) -> None:
    kinds = {"f4": "float", "f8": "double", "u1": "uchar", "u4": "uint"}
    lines = ["ply", f"format {form} 1.0", f"element vertex {len(rows) if count is None else count}"]
    lines += [f"property {kinds[rows.dtype[n].str[1:]]} {n}" for n in rows.dtype.names]
    path.write_bytes("\n".join([*lines, "end_header", ""]).encode() + rows.tobytes())


def rows_of(g: Gaussians, order: str = "<") -> np.ndarray:
    columns = columns_of(g)
    rows = np.zeros(len(g), [(n, order + "f4") for n in columns])
    for name, values in columns.items():
        rows[name] = values
    return rows


def test_a_big_endian_file_is_read(tmp_path):
    gaussians = random_gaussians(4, 1)
    write_rows(tmp_path / "a.ply", rows_of(gaussians, ">"), "binary_big_endian")
    assert torch.equal(read_ply(tmp_path / "a.ply")[0].shN, gaussians.shN)


def test_byte_colours_stand_in_for_harmonics(tmp_path):
    rows = rows_of(random_gaussians(1, 0))
    kept = [n for n in rows.dtype.names if not n.startswith("f_dc")]
    colored = np.zeros(
        1, [*((n, "<f4") for n in kept), *((n, "u1") for n in ("red", "green", "blue"))]
    )
    for name in kept:
        colored[name] = rows[name]
    colored["red"], colored["green"], colored["blue"] = 255, 128, 0
    write_rows(tmp_path / "a.ply", colored)
    expected = rgb_to_sh0(torch.tensor([[1.0, 128 / 255, 0.0]]))
    torch.testing.assert_close(read_ply(tmp_path / "a.ply")[0].sh0[:, 0], expected)


BAD_VALUES = {
    "x": np.nan,
    "y": np.inf,
    "z": 2e6,
    "scale_1": 25.0,
    "rot_2": np.nan,
    "opacity": np.nan,
    "f_dc_0": -np.inf,
    "f_rest_7": np.nan,
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_broken_gaussians_are_dropped_with_a_count(tmp_path, name):
    gaussians = random_gaussians(5, 1)
    rows = rows_of(gaussians)
    rows[name][[1, 3]] = BAD_VALUES[name]
    write_rows(tmp_path / "a.ply", rows)
    again, dropped = read_ply(tmp_path / "a.ply")
    assert dropped == 2
    assert torch.equal(again.means, gaussians.means[[0, 2, 4]])
    scene = load_scene(tmp_path / "a.ply")
    assert scene.metadata["notes"] == [
        "2 of 5 Gaussians were left out because they were not finite."
    ]


def test_infinite_opacity_logits_are_clamped_not_dropped(tmp_path):
    rows = rows_of(random_gaussians(2, 0))
    rows["opacity"] = [np.inf, -np.inf]
    write_rows(tmp_path / "a.ply", rows)
    again, dropped = read_ply(tmp_path / "a.ply")
    assert dropped == 0
    assert again.logit_opacities.tolist() == [30.0, -30.0]


def test_a_file_of_broken_gaussians_only_is_an_error(tmp_path):
    rows = rows_of(random_gaussians(3, 0))
    rows["x"] = np.nan
    write_rows(tmp_path / "a.ply", rows)
    with pytest.raises(SplatFileError, match="3 Gaussians and none with finite values"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("count", ["-1", "4", "6", "2147483648", "1000000000000000000", "1e3", ""])
@pytest.mark.parametrize("form", ["binary_little_endian", "ascii"])
def test_a_count_that_does_not_fit_the_file_is_refused_before_allocation(tmp_path, count, form):
    write_rows(tmp_path / "a.ply", rows_of(random_gaussians(5, 0)), form, count)
    with pytest.raises(SplatFileError):
        read_ply(tmp_path / "a.ply")


def test_a_mesh_and_a_point_cloud_are_refused_naming_what_is_missing(tmp_path):
    points = np.zeros(2, [(n, "<f4") for n in "xyz"])
    write_rows(tmp_path / "a.ply", points)
    with pytest.raises(SplatFileError, match="lacks the properties opacity, scale_0"):
        read_ply(tmp_path / "a.ply")
    (tmp_path / "b.ply").write_bytes(
        b"ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\n"
        b"end_header\n3 0 1 2\n"
    )
    with pytest.raises(SplatFileError, match="expected vertex"):
        read_ply(tmp_path / "b.ply")


def test_an_empty_scene_is_not_written(tmp_path):
    with pytest.raises(SplatFileError, match="0 Gaussians"):
        write_ply(random_gaussians(0), tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- compressed splats


def compress(path, g: Gaussians, with_harmonics: bool) -> None:
    """Write a compressed PLY of fewer than 257 Gaussians, independently of the reader."""

    def fraction(values):
        low, high = values.min(0), values.max(0)
        return low, high, (values - low) / np.maximum(high - low, 1e-12)

    def bits_11_10_11(f):
        x, y, z = (np.rint(f * [2047, 1023, 2047]).astype(np.uint32)).T
        return x << 21 | y << 11 | z

    low_p, high_p, f_p = fraction(g.means.numpy())
    low_s, high_s, f_s = fraction(g.log_scales.numpy())
    rgb = np.clip(g.sh0[:, 0].numpy() * 0.28209479177387814 + 0.5, 0, 1)
    color = np.rint(np.c_[rgb, g.opacities.numpy()] * 255).astype(np.uint32)
    packed_color = color[:, 0] << 24 | color[:, 1] << 16 | color[:, 2] << 8 | color[:, 3]
    packed_rotation = []
    for q in torch.nn.functional.normalize(g.quats, dim=1).numpy():
        largest = int(np.abs(q).argmax())
        others = np.delete(q * np.sign(q[largest]), largest)
        a, b, c = np.rint((others / np.sqrt(2) + 0.5) * 1023).astype(np.uint32).tolist()
        packed_rotation.append(largest << 30 | a << 20 | b << 10 | c)
    lines = ["ply", "format binary_little_endian 1.0", "element chunk 1"]
    lines += [
        f"property float {s}_{n}{a}" for n in ("", "scale_") for s in ("min", "max") for a in "xyz"
    ]
    lines += [f"element vertex {len(g)}"]
    lines += [f"property uint packed_{n}" for n in ("position", "rotation", "scale", "color")]
    vertex = np.stack([bits_11_10_11(f_p), packed_rotation, bits_11_10_11(f_s), packed_color], 1)
    data = np.concatenate([low_p, high_p, low_s, high_s]).astype("<f4").tobytes()
    data += vertex.astype("<u4").tobytes()
    if with_harmonics:
        rest = g.shN.transpose(1, 2).flatten(1).numpy()
        lines += [
            f"element sh {len(g)}",
            *(f"property uchar f_rest_{i}" for i in range(rest.shape[1])),
        ]
        data += np.clip(np.trunc((rest / 8 + 0.5) * 256), 0, 255).astype(np.uint8).tobytes()
    path.write_bytes("\n".join([*lines, "end_header", ""]).encode() + data)


@pytest.mark.parametrize("with_harmonics", [True, False])
def test_a_compressed_ply_is_read_within_its_quantisation(tmp_path, with_harmonics):
    g = random_gaussians(200, 2)
    compress(tmp_path / "a.ply", g, with_harmonics)
    scene = load_scene(tmp_path / "a.ply")
    again = scene.background
    torch.testing.assert_close(again.means, g.means, rtol=0, atol=4e-3)
    torch.testing.assert_close(again.log_scales, g.log_scales, rtol=0, atol=4e-3)
    quats = torch.nn.functional.normalize(g.quats, dim=1)
    assert float((again.quats * quats).sum(1).abs().min()) > 1 - 1e-5
    torch.testing.assert_close(again.opacities, g.opacities, rtol=0, atol=0.003)
    rgb = (g.sh0 * 0.28209479177387814 + 0.5).clamp(0, 1)
    torch.testing.assert_close(again.sh0 * 0.28209479177387814 + 0.5, rgb, rtol=0, atol=0.003)
    if with_harmonics:
        torch.testing.assert_close(again.shN, g.shN.clamp(-4, 4), rtol=0, atol=0.04)


def test_a_compressed_ply_with_too_few_chunks_is_refused(tmp_path):
    compress(tmp_path / "a.ply", random_gaussians(20, 0), False)
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"element chunk 1", b"element chunk 0", 1)[:-48])
    with pytest.raises(SplatFileError):
        read_compressed_ply(tmp_path / "a.ply")


def test_the_shared_guitar_opens(shared_data):
    scene = load_scene(shared_data("splats/guitar.compressed.ply"))
    assert scene.num_gaussians == 90_854
    size = scene.background.means.amax(0) - scene.background.means.amin(0)
    assert size.argmax() == 1 and 3 < float(size[1]) < 6  # a guitar is long and thin
    assert float(scene.background.scales.median()) < 0.05
