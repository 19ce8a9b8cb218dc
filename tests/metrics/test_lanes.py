"""NTL-IoU in closed form; TwinLiteNet's parts by hand, and the real weights if they are here."""

import math
from pathlib import Path

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import MetricError
from faithfusion_studio.metrics import lanes as L
from faithfusion_studio.metrics import twinlitenet as T

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
WEIGHTS = SHARED / "weights" / "twinlitenet" / "best.pth"


def front(width=640, height=360):
    pose = torch.tensor(
        [[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]], dtype=torch.float64
    )
    K = torch.tensor([[457.0, 0, 320], [0, 457.0, 180], [0, 0, 1]], dtype=torch.float64)
    return Camera(camtoworld=pose, K=K, width=640, height=360).resized(width, height)


def line(y, start=-10.0, stop=100.0):
    x = torch.arange(start, stop, 1.0)
    return torch.stack([x, torch.full_like(x, y), torch.zeros_like(x)], -1)


def test_a_perfect_detector_scores_a_hundred():
    truth = [L.lane_mask([line(1.75), line(-1.75)], front())] * 2
    score = L.ntl_iou(truth, truth)
    assert (100 * score.ntl_iou, score.lane_iou, score.lane_frames) == (100.0, 1.0, 2)


def test_an_empty_detector_gets_half_of_the_background_for_nothing():
    truth = L.lane_mask([line(1.75)], front())
    share = float((~truth).double().mean())
    score = L.ntl_iou([torch.zeros_like(truth)], [truth])
    assert score.ntl_iou == pytest.approx(share / 2)
    assert score.lane_iou == 0.0
    assert score.ntl_iou > 0.45  # what the lane's own IoU beside it is for


def test_iou_is_counted_per_frame_and_class():
    truth, found = torch.zeros(2, 4) > 0, torch.zeros(2, 4) > 0
    truth[0], found[0, 2:], found[1, 3:] = True, True, True
    score = L.ntl_iou([found, found], [truth, torch.zeros_like(truth)])
    first = (3 / 6 + 2 / 5) / 2
    second = (5 / 8 + 0 / 3) / 2
    assert score.ntl_iou == pytest.approx((first + second) / 2)
    assert score.lane_iou == pytest.approx((2 / 5 + 0) / 2)
    assert (score.frames, score.lane_frames) == (2, 1)
    everything_empty = L.ntl_iou([~truth | truth], [~truth | truth])
    assert everything_empty.ntl_iou == 0.5  # no background in either counts as 0, as published
    with pytest.raises(MetricError, match="at least one"):
        L.ntl_iou([], [])


def test_lines_are_drawn_where_they_are():
    mask = L.lane_mask([line(1.75)], front())
    for x in (10.0, 20.0, 40.0):
        u, v = 320 - 457 * 1.75 / x, 180 + 457 * 1.6 / x
        assert bool(mask[int(v), int(u)])
        assert not bool(mask[int(v), int(u) + 12])
    wide = (mask[int(180 + 457 * 1.6 / 10)]).sum()
    assert 5 <= int(wide) <= 12  # 5 px thick, drawn at an angle


def test_what_is_far_high_or_behind_is_not_drawn():
    camera = front()
    assert L.visible_pieces(line(0.0, -50, -2), camera) == []
    assert L.visible_pieces(line(0.0, 76, 99), camera) == []
    assert L.visible_pieces(line(0.0) + torch.tensor([0.0, 0, 12]), camera) == []
    (piece,) = L.visible_pieces(line(0.0), camera)
    assert bool(torch.isfinite(piece).all())
    assert float(piece[0, 1]) == pytest.approx(180 + 457 * 1.6 / 1.0)  # the first point ahead
    assert not bool(L.lane_mask([], camera).any())


def test_a_line_that_leaves_and_returns_is_two_pieces():
    points = line(0.0, 5, 30)
    points[10:13, 2] = 40.0
    pieces = L.visible_pieces(points, front())
    assert [len(piece) for piece in pieces] == [10, 12]
    points[1:24, 2] = 40.0
    assert L.visible_pieces(points, front()) == []


def test_painted_road_is_found_again_by_a_threshold():
    """A picture painted with the mask's own line, found by brightness: almost the whole lane."""
    mask = L.lane_mask([line(1.75)], front())
    picture = torch.full((360, 640, 3), 0.3) + 0.02 * torch.rand(360, 640, 3)
    picture[mask] = 0.9
    found = picture.mean(-1) > 0.6
    assert L.ntl_iou([found], [mask]).lane_iou == 1.0
    shifted = found.roll(2, 1)
    assert 0.3 < L.ntl_iou([shifted], [mask]).lane_iou < 0.9


def test_the_network_has_the_published_size():
    net = T.TwinLiteNet().eval()
    assert sum(p.numel() for p in net.parameters()) == 439_633
    assert len(net.state_dict()) == 183
    with torch.no_grad():
        drivable, lane = net(torch.rand(1, 3, 32, 40))
    assert drivable.shape == lane.shape == (1, 2, 32, 40)


def test_both_attentions_are_their_sums():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 2, 3)
    position = T.PositionAttention(8)
    channel = T.ChannelAttention()
    for block in (position, channel):
        assert torch.equal(block(x), x)  # begins as the identity
        block.gamma.data.fill_(0.7)
    pixels = x[0].flatten(1).T
    weight = lambda conv: conv.weight.data[:, :, 0, 0]  # noqa: E731
    q, k, v = (
        pixels @ weight(c).T + c.bias.data
        for c in (position.query_conv, position.key_conv, position.value_conv)
    )
    expected = torch.zeros_like(pixels)
    for i in range(6):
        share = torch.tensor([math.exp(float(q[i] @ k[j])) for j in range(6)])
        expected[i] = (share / share.sum()) @ v
    found = position(x)[0].flatten(1).T
    assert torch.allclose(found, 0.7 * expected + pixels, atol=1e-5)
    rows = x[0].flatten(1)
    share = torch.softmax(-(rows @ rows.T), -1)
    assert torch.allclose(channel(x)[0].flatten(1), 0.7 * share @ rows + rows, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        T.LaneNet(tmp_path / "absent.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not the weights of TwinLiteNet"):
        T.LaneNet(tmp_path / "other.pth")


def test_the_published_weights_find_the_lanes_of_a_real_road():
    frames = sorted((SHARED / "data" / "kitti_boulevard" / "images").glob("*.jpg"))
    if not WEIGHTS.is_file() or len(frames) < 61:
        pytest.skip(f"{WEIGHTS} or its test pictures are not here")
    import cv2

    net = T.LaneNet(WEIGHTS)
    assert net.name == "twinlitenet 98ffc6c8abc9"
    picture = cv2.imread(str(frames[60]))[:, :, ::-1].copy()
    mask = net.lanes(torch.from_numpy(picture).float() / 255)
    assert 0.001 < float(mask.float().mean()) < 0.1
    assert not bool(mask[:150].any())  # nothing above the horizon
