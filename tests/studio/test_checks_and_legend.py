"""Numbers against photos, and the words and scales around the picture."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from street_scene import street, with_true_photos, without_recording

from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.studio.checks import (
    Agreement,
    FrameCheck,
    QualityError,
    check_frame,
    held_out_frames,
    mean_curves,
    summary,
)
from faithfusion_studio.studio.legend import color_bar, histogram_svg, legend, shares
from faithfusion_studio.studio.status import count_text, status_text
from faithfusion_studio.studio.verdict import answer, curve, verdict, warning
from faithfusion_studio.studio.view_state import LAYERS, SOURCES, Measurement, ViewState


def measured(**changes):
    empty = Measurement(ms=31.4, fps=0.0, size=(640, 360), coarse=False)
    return replace(empty, **changes)


def test_a_photo_of_the_scene_itself_has_a_high_psnr_and_a_wrong_one_a_low():
    scene = street()
    true = check_frame(with_true_photos(scene), 2)
    wrong = check_frame(scene, 2)
    assert true.psnr > 45
    assert wrong.psnr < 15
    assert math.isnan(true.spearman) and math.isnan(true.ause)


def test_with_evidence_the_agreement_of_eig_and_error_is_measured():
    scene = street()
    scene = replace(scene, fisher=recorded_fisher(scene, max_views=3))
    result = check_frame(scene, 4)
    assert -1 <= result.spearman <= 1
    assert math.isfinite(result.ause)
    means = summary([result, check_frame(scene, 5)])
    assert set(means) == {"psnr", "spearman", "ause", "found", "covered", "calibrated"}
    assert all(math.isfinite(value) for value in means.values())


def test_held_out_frames_come_from_the_reconstruction():
    scene = replace(street(), metadata={"reconstruction": {"holdout": [1, 9, 77, "x"]}})
    assert held_out_frames(scene) == [1, 9]
    assert check_frame(scene, 9).held_out
    assert not check_frame(scene, 2).held_out
    assert held_out_frames(street()) == []


def test_without_photos_there_is_nothing_to_compare_with():
    with pytest.raises(QualityError, match="no recorded photos"):
        check_frame(without_recording(street()), 0)


def checked(most, error, covered=0.9, frame=0):
    """A check whose EIG is `most` and whose error is `error`."""
    from faithfusion_studio.metrics import capture, sparsification

    _, left, best = sparsification(most, error)
    agreement = Agreement(
        spearman=float(torch.corrcoef(torch.stack([most, error]))[0, 1]),
        ause=0.1,
        found=capture(most, error, 0.1),
        covered=covered,
        ratios=error / error.mean(),
        left=(left / left[0]).float(),
        best=(best / left[0]).float(),
    )
    return FrameCheck(frame, 30.0, True, agreement, error[:, None])


def test_a_perfect_map_and_a_blind_one_get_opposite_verdicts():
    error = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    blind = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    good, bad = (summary([checked(m, error)]) for m in (error, blind))
    assert verdict(good).startswith("On this scene EIG finds 100 % of the worst 10 % of pixels")
    assert warning(good) == ""
    assert "not validated" in verdict(bad) and "Do not rely on EIG here" in warning(bad)
    assert "cannot" in warning(summary([checked(error, error, covered=0.5)]))
    assert "not validated" in verdict(summary([]))


def test_the_curve_of_a_perfect_map_is_the_best_curve():
    error = torch.rand(500, generator=torch.Generator().manual_seed(1))
    left, best = mean_curves([checked(error, error)])
    assert left == best and left[0] == pytest.approx(1) and left == sorted(left, reverse=True)
    assert curve([checked(error, error)]).count("<polyline") == 3
    assert curve([check_frame(street(), 1)]) == "" and mean_curves([]) is None


def test_the_answer_says_what_was_compared():
    error = torch.rand(500, generator=torch.Generator().manual_seed(1))
    held = answer([checked(error, error, frame=7), checked(error, error, frame=9)])
    assert "7 *" in held and "held out" in held and "once widened" in held
    assert "1 true views at +3 m" in answer([checked(error, error)], "at +3 m")
    assert "trained on" in answer([check_frame(street(), 1)])


def test_intervals_are_widened_by_the_other_views_only():
    error = torch.rand(4000, generator=torch.Generator().manual_seed(3))
    one, two = checked(error, error), checked(error, error, frame=1)
    assert summary([one, two])["calibrated"] == pytest.approx(0.9, abs=0.01)
    ten_times = replace(one, agreement=replace(one.agreement, ratios=10 * one.agreement.ratios))
    assert summary([ten_times, two])["calibrated"] < 0.6
    assert math.isnan(summary([one])["calibrated"])


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_named_and_scales_have_units(layer):
    text = legend(ViewState(layer=layer), measured(eig_max=6.1))
    assert LAYERS[layer] in text
    if layer == "depth":
        assert "100 m" in text
    if layer == "eig":
        assert "nats" in text and ">6.1<" in text
    assert bool(color_bar(layer, 6.1)) == (layer not in ("rgb", "provenance"))


def test_a_comparison_names_both_sides():
    text = legend(ViewState(compare="wipe", compare_with="photo"), measured())
    assert SOURCES["photo"] in text and "left" in text and "right" in text


def test_words_from_outside_cannot_become_markup():
    text = legend(ViewState(), measured(problem="<img src=x onerror=alert(1)>"))
    assert "<img" not in text


def test_shares_add_up_and_the_band_belongs_to_what_is_kept():
    text = shares(ViewState(threshold=(0.25, 0.5)), measured(histogram=(0.4, 0.3, 0.2, 0.1)))
    assert "UCR 30%" in text and "HPR 70%" in text and "30%</b> to check" in text
    assert "No EIG" in shares(ViewState(), measured())


def test_the_histogram_draws_one_bar_per_bin():
    svg = histogram_svg(ViewState(), measured(histogram=(0.25,) * 4))
    assert svg.count("<rect") == 4


def test_counts_and_the_status_line_have_two_or_three_digits(session):
    assert [count_text(n) for n in (950, 49_500, 212_345, 3_140_000)] == [
        "950",
        "49.5k",
        "212k",
        "3.14M",
    ]
    text = status_text(session.state, measured())
    assert text.startswith("CPU, 2 threads ")
    assert "31 ms at 640x360" in text and "600 splats" in text and "saved" in text


def test_the_status_line_says_what_runs_in_few_words(session):
    session.state.job = SimpleNamespace(kind="fusion", done=12, total=200, paused=True)
    text = status_text(session.state, measured())
    assert text.startswith("Fusion 12/200 (paused) · 31 ms")
    assert len(text) < 80
