"""SPZ byte for byte: the layouts of all versions, far scenes, axes, and what damage may not do."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_gaussians import covariances, random_gaussians

from faithfusion_studio.io import ExportOptions, load_scene, save_scene
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.spz import flipped_yz, read_spz, write_spz
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import eval_sh, quat_to_rotmat


def legacy(version: int, rows: list[dict], degree: int = 0, flags: int = 0, more: bytes = b""):
    """A file of version 1 to 3 by hand, in the order of the format."""
    parts = [b"".join(row[name] for row in rows) for name in ("p", "a", "c", "s", "q", "h")]
    header = struct.pack("<4sIIBBBB", b"NGSP", version, len(rows), degree, 12, flags, 0)
    return gzip.compress(header + b"".join(parts) + more)


def fixed(value: float) -> bytes:
    return int(round(value * 4096)).to_bytes(4, "little", signed=True)[:3]


ROW = {
    "p": fixed(1.5) + fixed(-2.25) + fixed(100.0),
    "a": bytes([128]),
    "c": bytes([255, 128, 0]),
    "s": bytes([160, 144, 176]),
    "q": b"",
    "h": b"",
}


def only(path):
    gaussians, dropped, _ = read_spz(path)
    assert dropped == 0 and len(gaussians) == 1
    return gaussians


@pytest.mark.parametrize("version", [2, 3])
def test_values_are_read_as_the_format_says(tmp_path, version):
    # Half a turn about x is xyzw (1, 0, 0, 0); a quarter about y is (0, s, 0, s).
    quat = bytes([255, 128, 128]) if version == 2 else struct.pack("<I", 0)
    (tmp_path / "a.spz").write_bytes(legacy(version, [{**ROW, "q": quat}]))
    g = only(tmp_path / "a.spz")
    assert g.means.tolist() == [[1.5, -2.25, 100.0]]
    assert g.log_scales.tolist() == [[0.0, -1.0, 1.0]]
    assert float(g.opacities[0]) == pytest.approx(128 / 255, abs=1e-6)
    assert g.sh0[0, 0].tolist() == pytest.approx(
        [0.5 / 0.15, 0.5 / 255 / 0.15, -0.5 / 0.15], abs=1e-6
    )
    expected = torch.tensor([0.0, 1, 0, 0])
    torch.testing.assert_close(g.quats[0].abs(), expected, rtol=0, atol=0.1)


def test_the_smallest_three_are_in_the_order_of_the_format(tmp_path):
    # Largest is w (index 3); x = +0.5, y = -0.5, z = 0.25 with 9 bits and a sign each.
    unit = 511 / 0.5**0.5
    fields = [round(0.5 * unit), round(0.5 * unit) | 512, round(0.25 * unit)]
    packed = 3 << 30 | fields[0] << 20 | fields[1] << 10 | fields[2]
    (tmp_path / "a.spz").write_bytes(legacy(3, [{**ROW, "q": struct.pack("<I", packed)}]))
    w = (1 - 0.25 - 0.25 - 0.0625) ** 0.5
    assert only(tmp_path / "a.spz").quats[0].tolist() == pytest.approx(
        [w, 0.5, -0.5, 0.25], abs=2e-3
    )


def test_the_first_version_holds_half_floats(tmp_path):
    row = {**ROW, "p": np.array([1.5, -2.25, 3000.0], "<f2").tobytes(), "q": bytes([128] * 3)}
    (tmp_path / "a.spz").write_bytes(legacy(1, [row]))
    assert only(tmp_path / "a.spz").means.tolist() == [[1.5, -2.25, 3000.0]]


def test_sh_runs_coefficient_by_coefficient_with_the_colour_inside(tmp_path):
    sh = bytes(range(128, 128 + 9))
    row = {**ROW, "q": struct.pack("<I", 0), "h": sh}
    (tmp_path / "a.spz").write_bytes(legacy(3, [row], degree=1))
    expected = torch.arange(9).reshape(3, 3) / 128
    torch.testing.assert_close(only(tmp_path / "a.spz").shN[0], expected)


def test_sh_of_degree_four_is_cut_and_said(tmp_path):
    row = {**ROW, "q": struct.pack("<I", 0), "h": bytes([128 + 64] * 72)}
    (tmp_path / "a.spz").write_bytes(legacy(3, [row], degree=4))
    gaussians, _, notes = read_spz(tmp_path / "a.spz")
    assert gaussians.shN.shape == (1, 15, 3) and notes == ["SH of degree 4 were cut to degree 3."]


def test_extension_records_are_passed_over_and_anything_else_after_the_end_is_refused(tmp_path):
    rows = [{**ROW, "q": struct.pack("<I", 0)}]
    (tmp_path / "a.spz").write_bytes(legacy(3, rows, flags=2, more=b"record"))
    assert "passed over" in read_spz(tmp_path / "a.spz")[2][0]
    (tmp_path / "a.spz").write_bytes(legacy(3, rows, more=b"record"))
    with pytest.raises(SplatFileError, match="the stream holds more"):
        read_spz(tmp_path / "a.spz")


@pytest.mark.parametrize("count", [0, 2, 10**6, 2**31, 2**32 - 1])
@pytest.mark.parametrize("version", [3, 4])
def test_a_false_count_is_refused_before_anything_is_allocated(tmp_path, version, count):
    save_scene(
        Scene(random_gaussians(1, 0)), tmp_path / "a.spz", ExportOptions(spz_version=version)
    )
    data = (tmp_path / "a.spz").read_bytes()
    plain = bytearray(data if version == 4 else gzip.decompress(data))
    plain[8:12] = struct.pack("<I", count)
    (tmp_path / "a.spz").write_bytes(plain if version == 4 else gzip.compress(plain))
    with pytest.raises(SplatFileError):
        read_spz(tmp_path / "a.spz")


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    header = struct.pack("<4sIIBBBB", b"NGSP", 3, 50_000_000, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + bytes(10**6)))
    with pytest.raises(SplatFileError, match="no more than fit"):
        read_spz(tmp_path / "a.spz")


@pytest.mark.parametrize("version", [3, 4])
def test_our_files_have_the_layout_of_the_reference(tmp_path, version):
    g = random_gaussians(7, 2)
    write_spz(g, tmp_path / "a.spz", version=version)
    data = (tmp_path / "a.spz").read_bytes()
    sizes = [63, 7, 21, 21, 28, 7 * 24]
    if version == 3:
        plain = gzip.decompress(data)
        assert struct.unpack_from("<4sIIBBBB", plain) == (b"NGSP", 3, 7, 2, 12, 0, 0)
        assert len(plain) == 16 + sum(sizes)
        return
    magic, number, count, degree, bits, flags, streams, table = struct.unpack_from(
        "<4sIIBBBBI", data
    )
    assert (magic, number, count, degree, bits, flags, streams, table) == (
        b"NGSP",
        4,
        7,
        2,
        12,
        0,
        6,
        32,
    )
    listed = struct.unpack_from("<12Q", data, 32)
    assert list(listed[1::2]) == sizes and 32 + 96 + sum(listed[::2]) == len(data)


def test_a_wide_scene_gets_coarser_steps_and_says_so(tmp_path):
    g = random_gaussians(5, 0)
    wide = replace(g, means=g.means * torch.tensor([4000.0, 1, 1]) / g.means[:, 0].abs().max())
    notes = write_spz(wide, tmp_path / "a.spz")
    assert notes == ["The scene reaches beyond 2 km, so positions are in steps of 0.49 mm."]
    torch.testing.assert_close(only_means(tmp_path / "a.spz"), wide.means, rtol=0, atol=0.5e-3)


def test_a_scene_far_from_its_origin_is_moved_and_the_move_is_said(tmp_path):
    g = random_gaussians(5, 0)
    far = replace(g, means=(g.means + torch.tensor([400_000.0, -30_000.0, 10.0])))
    notes = write_spz(far, tmp_path / "a.spz")
    assert len(notes) == 1 and "the origin was moved to (40" in notes[0]
    origin = torch.tensor([float(v) for v in notes[0].split("(")[1].split(")")[0].split(",")])
    torch.testing.assert_close(
        only_means(tmp_path / "a.spz") + origin, far.means, rtol=0, atol=0.04
    )


def only_means(path):
    return read_spz(path)[0].means


# ------------------------------------------------------------------------------------------ axes


def test_flipping_turns_everything_half_about_x_and_twice_is_nothing(tmp_path):
    g = random_gaussians(6, 3)
    flipped = flipped_yz(g)
    assert torch.equal(flipped.means, g.means * torch.tensor([1.0, -1, -1]))
    turn = torch.diag(torch.tensor([1.0, -1, -1]))
    torch.testing.assert_close(covariances(flipped), turn @ covariances(g) @ turn)
    direction = torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
    torch.testing.assert_close(
        eval_sh(3, flipped.sh, direction @ turn), eval_sh(3, g.sh, direction), rtol=0, atol=1e-5
    )
    twice = flipped_yz(flipped)
    torch.testing.assert_close(twice.shN, g.shN, rtol=0, atol=1e-5)
    torch.testing.assert_close(quat_to_rotmat(twice.quats), quat_to_rotmat(g.quats))


def test_a_file_in_other_axes_comes_back_with_the_option_in_both_directions(tmp_path):
    g = replace(random_gaussians(30, 1), shN=random_gaussians(30, 1).shN * 0.1)
    save_scene(Scene(g), tmp_path / "rub.spz", ExportOptions(flip_yz=True))
    save_scene(Scene(g), tmp_path / "rdf.spz")
    rub, rdf = (
        load_scene(tmp_path / "rub.spz").background,
        load_scene(tmp_path / "rdf.spz").background,
    )
    torch.testing.assert_close(rub.means, flipped_yz(rdf).means, rtol=0, atol=2.5e-4)
    save_scene(Scene(rub), tmp_path / "back.ply", ExportOptions(flip_yz=True))
    back = load_scene(tmp_path / "back.ply").background
    torch.testing.assert_close(back.means, g.means, rtol=0, atol=2.5e-4)
    torch.testing.assert_close(back.shN[:, :3], g.shN, rtol=0, atol=0.04)


# ----------------------------------------------------------------------------------- other readers


def test_gsply_reads_our_third_version(tmp_path):
    gsply = pytest.importorskip("gsply")
    g = random_gaussians(40, 0)
    write_spz(g, tmp_path / "a.spz")
    found = gsply.read_spz(tmp_path / "a.spz")
    ours = read_spz(tmp_path / "a.spz")[0]
    np.testing.assert_allclose(found.means, ours.means.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.scales, ours.log_scales.numpy(), atol=1e-6)
