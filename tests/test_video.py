from dataclasses import replace
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from test_gaussians import random_gaussians

from faithfusion_studio import video
from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics import psnr
from faithfusion_studio.scene import Scene
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import look_at
from faithfusion_studio.video import VideoError, VideoOptions, export_video


def camera(x: float = -6.0, width: int = 64, height: int = 48) -> Camera:
    pose = look_at(*torch.tensor([[x, 0.3, 1], [5, 0, 1], [0, 0, 1]], dtype=torch.float64))
    K = torch.tensor([[60.0, 0, width / 2], [0, 60, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, width, height)


@pytest.fixture
def scene() -> Scene:
    g = random_gaussians(30, 0)
    g = replace(g, log_scales=g.log_scales * 0.3 - 0.7, means=g.means * torch.tensor([1, 2, 1.0]))
    return Scene(g, sky=ConstantSky(torch.tensor([0.3, 0.5, 0.8])))


@pytest.fixture
def cameras() -> list[Camera]:
    return [camera(-6 + 0.2 * i) for i in range(5)]


@pytest.fixture
def fake_eig(monkeypatch):
    """EIG of one nat everywhere, half the calibrated range: what the export does with it is ours."""
    from faithfusion_studio.information import eig

    def eig_map(scene, camera, *, form, view):
        shape = (camera.height, camera.width)
        return SimpleNamespace(eig=torch.ones(shape), calibrated=torch.full(shape, 0.5), form=form)

    monkeypatch.setattr(eig, "eig_map", eig_map)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_shows_the_rendered_frames(scene, cameras, tmp_path):
    path = tmp_path / "out.mp4"
    options = VideoOptions(fps=7.5)
    assert list(export_video(scene, cameras, path, options)) == [1, 2, 3, 4, 5]
    frames = decoded(path)
    assert len(frames) == 5
    for frame, cam in zip(frames, cameras, strict=True):
        truth = video.render_layers(scene, cam, options).pictures["rgb"]
        assert frame.shape == (48, 64, 3)
        grey = [x.float().mean(-1, keepdim=True) / 255 for x in (torch.from_numpy(frame), truth)]
        assert psnr(*(x.expand(-1, -1, 3) for x in grey)) > 38
        assert np.abs(frame.mean((0, 1)) - truth.numpy().mean((0, 1))).max() < 2  # no colour shift
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 7.5
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    reader = cv2.VideoCapture(str(path))
    assert int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    assert list(tmp_path.iterdir()) == [path]


def test_odd_sizes_are_padded_to_even(scene, tmp_path):
    path = tmp_path / "odd.mp4"
    list(export_video(scene, [camera(width=33, height=21)], path))
    assert decoded(path)[0].shape == (22, 34, 3)


def test_a_cancelled_export_leaves_nothing(scene, cameras, tmp_path):
    for target in (tmp_path / "out.mp4", tmp_path / "pictures"):
        work = export_video(scene, cameras, target)
        assert next(work) == 1
        assert list(tmp_path.iterdir()) != []
        work.close()
        assert list(tmp_path.iterdir()) == []


def test_a_cancelled_export_keeps_the_older_file(scene, cameras, tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    work = export_video(scene, cameras, path)
    next(work)
    work.close()
    assert path.read_bytes() == b"older"


def test_a_frame_that_fails_leaves_nothing(scene, cameras, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "render_layers", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(export_video(scene, cameras, tmp_path / "out.mp4"))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # every file stops growing here
from faithfusion_studio.video import export_video, VideoError, VideoOptions
from faithfusion_studio.scene import Scene
import faithfusion_studio.video as video
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import empty_gaussians
noise = lambda *_: video.LayerImages(
    {"rgb": torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8)}, None, None, None)
video.render_layers = noise
eye = torch.eye(4, dtype=torch.float64)
cameras = [Camera(eye, torch.eye(3, dtype=torch.float64), 96, 96)] * 20
try:
    list(export_video(Scene(empty_gaussians()), cameras, sys.argv[1]))
except VideoError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["out.mp4", "pictures"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(run_python, tmp_path, name):
    folder = tmp_path / "here"
    folder.mkdir()
    result = run_python("-c", FULL_DISK, str(folder / name))
    assert "cannot be written" in result.stdout, result.stderr
    assert result.stdout.count("\n") == 1
    assert names(folder) == []


def test_a_folder_holds_pictures_and_values_per_layer(scene, cameras, tmp_path, fake_eig):
    folder = tmp_path / "views"
    options = VideoOptions(layers=("rgb", "eig", "depth"), stems=tuple("abcde"))
    list(export_video(scene, cameras, folder, options))
    suffixes = ("rgb.png", "eig.png", "eig.npy", "depth.png", "depth.npy")
    assert names(folder) == sorted(f"{s}_{x}" for s in "abcde" for x in suffixes)
    eig, depth = np.load(folder / "c_eig.npy"), np.load(folder / "c_depth.npy")
    assert (eig.dtype, eig.shape, float(eig[0, 0])) == (np.float32, (48, 64), 1.0)
    assert depth.dtype == np.float32
    assert 3 < float(depth.max()) < 15
    rgb = cv2.imread(str(folder / "c_rgb.png"))[:, :, ::-1]
    truth = video.render_layers(scene, cameras[2], VideoOptions()).pictures["rgb"]
    assert np.array_equal(rgb, truth.numpy())
    assert cv2.imread(str(folder / "c_eig.png")).std() == pytest.approx(
        video.eig_colors(torch.full((2, 2), 0.5)).mul(255).std(correction=0).item(), abs=1
    )


def test_a_second_export_into_a_folder_keeps_what_else_is_there(scene, cameras, tmp_path):
    folder = tmp_path / "views"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    list(export_video(scene, cameras[:1], folder))
    assert names(folder) == ["000000_rgb.png", "notes.txt"]


def test_the_same_path_gives_the_same_pictures(scene, cameras, tmp_path):
    for name in ("one", "two"):
        list(export_video(scene, cameras[:2], tmp_path / name))
    for file in names(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_layers_stand_side_by_side(scene, cameras, tmp_path, fake_eig):
    path = tmp_path / "wide.mp4"
    options = VideoOptions(layers=("rgb", "eig", "depth"), layout="side-by-side")
    list(export_video(scene, cameras[:2], path, options))
    assert decoded(path)[0].shape == (48, 3 * 64, 3)


def test_single_videos_of_several_layers_are_several_files(scene, cameras, tmp_path):
    path = tmp_path / "out.mp4"
    options = VideoOptions(layers=("rgb", "depth"))
    list(export_video(scene, cameras[:2], path, options))
    assert names(tmp_path) == ["out.mp4", "out_depth.mp4"]
    assert [p.name for p in video.export_files(path, options)] == ["out.mp4", "out_depth.mp4"]


def test_before_stands_left_of_after(scene, cameras, tmp_path):
    folder = tmp_path / "compare"
    black = Scene(scene.background.select(torch.zeros(0, dtype=torch.long)))
    options = VideoOptions(layout="before-after", before=black)
    list(export_video(scene, cameras[:1], folder, options))
    picture = cv2.imread(str(folder / "000000_before-after.png"))
    assert picture.shape == (48, 128, 3)
    assert int(picture[:, :64].max()) == 0
    assert int(picture[:, 64:].min()) > 0


def test_columns_show_before_after_eig_and_truth_with_captions(scene, cameras, tmp_path, fake_eig):
    darker = replace(scene, sky=ConstantSky(torch.tensor([0.0, 0.0, 0.0])))
    files = []
    for index in range(len(cameras)):
        file = tmp_path / f"true_{index}.png"
        cv2.imwrite(str(file), np.full((48, 64, 3), (20, 90 + index, 160), np.uint8))
        files.append(file)
    options = VideoOptions(layout="columns", before=darker, truth=tuple(files))
    list(export_video(scene, cameras, tmp_path / "columns", options))
    picture = cv2.imread(str(tmp_path / "columns" / "000003_columns.png"))
    assert picture.shape == (48, 4 * 64, 3)
    parts = [picture[:16, i * 64 : (i + 1) * 64] for i in range(4)]
    assert parts[0].mean() < parts[1].mean()
    assert (parts[3] == (20, 93, 160)).all()  # this frame's own picture
    assert len(np.unique(parts[2].reshape(-1, 3), axis=0)) == 1  # one nat everywhere
    bare = replace(options, truth=())
    list(export_video(scene, cameras, tmp_path / "bare", bare))
    assert cv2.imread(str(tmp_path / "bare" / "000000_columns.png")).shape == (48, 3 * 64, 3)
    with pytest.raises(VideoError, match="one per frame"):
        export_video(scene, cameras, tmp_path / "o", replace(options, truth=tuple(files[:2])))


def test_captions_darken_a_strip_and_leave_the_rest(scene, cameras, tmp_path):
    plain, named = tmp_path / "plain", tmp_path / "named"
    list(export_video(scene, cameras[:1], plain))
    list(export_video(scene, cameras[:1], named, VideoOptions(caption="+3 m")))
    a, b = (cv2.imread(str(f / "000000_rgb.png")).astype(int) for f in (plain, named))
    assert np.array_equal(a[:24], b[:24])
    assert not np.array_equal(a[36:], b[36:])


def test_provenance_is_burned_in_when_asked(scene):
    options = VideoOptions(provenance=True)
    assert 0 < video.render_layers(scene, camera(), options).generated < 1
    plain = video.panels(scene, camera(), VideoOptions())[0]
    assert not np.array_equal(plain, video.panels(scene, camera(), options)[0])


def test_another_aspect_ratio_keeps_square_pixels_and_the_width():
    base = camera(width=64, height=48)
    same = video.fit_camera(base, 32, 24)
    torch.testing.assert_close(same.K, base.resized(32, 24).K)
    wide = video.fit_camera(base, 128, 48)
    assert float(wide.K[0, 0]) == float(wide.K[1, 1]) == 120
    assert float(wide.K[1, 2]) == 24  # the principal point stays central
    assert (wide.width, wide.height) == (128, 48)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (VideoOptions(layers=("normals",)), "found normals"),
        (VideoOptions(layers=()), "found none"),
        (VideoOptions(layers=("rgb", "rgb")), "names one twice"),
        (VideoOptions(layout="before-after"), "needs the scene from before"),
        (VideoOptions(size=(1, 9)), "at least 2x2"),
        (VideoOptions(fps=0.0), "fps"),
        (VideoOptions(stems=("a", "a", "b", "c", "d")), "own file name"),
    ],
)
def test_impossible_wishes_are_refused_at_once(scene, cameras, tmp_path, options, reason):
    with pytest.raises(VideoError, match=reason):
        export_video(scene, cameras, tmp_path / "out.mp4", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["clip.avi", "clip.GIF", "frame.png"])
def test_other_suffixes_are_not_taken_for_folders(scene, cameras, tmp_path, name):
    with pytest.raises(VideoError, match="name an .mp4 file"):
        list(export_video(scene, cameras, tmp_path / name, VideoOptions(layers=("rgb",))))
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_are_refused(scene, cameras, tmp_path):
    with pytest.raises(VideoError, match="no frames"):
        export_video(scene, [], tmp_path / "out.mp4")
    with pytest.raises(VideoError, match="folder does not exist"):
        export_video(scene, cameras, tmp_path / "no" / "out.mp4")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VideoError, match="is a file"):
        list(export_video(scene, cameras, tmp_path / "file"))
