"""Plans by name: their stages are the published ones, and every value can be set by name."""

from dataclasses import fields

import pytest

from faithfusion_studio.fusion.presets import (
    PRESETS,
    PlanError,
    configured,
    preset,
    progressive_stages,
)
from faithfusion_studio.fusion.schedule import FusionConfig


def test_faithfusion_has_the_published_schedule():
    config = preset("faithfusion")
    stages = progressive_stages(config, (0, 40))
    offsets = [stage.lateral_offset for stage in stages]
    assert offsets == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]
    # 3000 steps of reconstruction come before; its step 20,000 falls into the refresh of step 15,000.
    starts = [3000 + sum(s.steps for s in stages[:i]) for i in range(len(stages))]
    assert starts == [3000, 5000, 7000, 9000, 11000, 13000, 15000, 20000, 21000, 27000]
    assert starts[-1] + stages[-1].steps == 30_000
    assert [s.weighting for s in stages] == ["released"] * 7 + ["uniform"] * 3
    assert [s.repair for s in stages] == [True] * 7 + [False, True, True]
    assert config.replay == 0.6 and config.novel_weight == 0.7 and not config.keep_stages


def test_difix3d_moves_half_a_metre_and_cyclic_stays_where_it_is():
    difix3d = progressive_stages(preset("difix3d"), (0, 10))
    assert [s.lateral_offset for s in difix3d] == [0.5, 1, 1.5, 2, 2.5, 3]
    cyclic = progressive_stages(preset("cyclic"), (0, 10))
    assert {s.lateral_offset for s in cyclic} == {3.0} and len(cyclic) == 6
    assert preset("cyclic").novel_curve == "sine" and preset("cyclic").keep_stages


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_stages_that_cover_the_segment(name):
    config = configured(preset(name), ["window=7", "both_sides=true", "pace=0.01"])
    stages = progressive_stages(config, (3, 24))
    for offset in (config.offset, -config.offset):
        covered = {
            i for s in stages if s.lateral_offset == offset for i in range(*s.segment) if s.repair
        }
        assert covered == set(range(3, 24))
    assert all(0 < s.segment[1] - s.segment[0] <= 7 and s.steps >= 1 for s in stages)


def test_the_last_distance_is_the_offset_whatever_the_step():
    config = FusionConfig(offset=-2.5, offset_step=1.0)
    assert [s.lateral_offset for s in progressive_stages(config, (0, 3))] == [-1, -2, -2.5]
    at_once = FusionConfig(offset=-2.5, offset_step=0.0)
    assert [s.lateral_offset for s in progressive_stages(at_once, (0, 3))] == [-2.5]


def test_values_are_set_by_name_in_their_own_kind():
    config = configured(
        FusionConfig(),
        [
            "offset=-4",
            "refresh_steps=50,60",
            "late_weighting=uniform",
            "densify=true",
            "rates.means=1e-5",
            "hold=always",
            "late_engine=refiner",
        ],
    )
    assert config.offset == -4.0 and config.refresh_steps == (50, 60)
    assert config.late_weighting == "uniform" and config.densify is True
    assert config.rates.means == 1e-5 and config.hold == "always"
    assert configured(config, ["late_weighting=none"]).late_weighting is None


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("offset", "name=value"),
        ("ofset=3", "perhaps you meant offset"),
        ("offset=far", "expected a number"),
        ("steps=2.5", "expected a whole number"),
        ("hold=never", "choose from free, repaired, always"),
        ("densify=2", "choose from true, false"),
        ("rates=1", "group of values"),
        ("offset.x=1", "part of one value"),
        ("replay=nan", "expected a number"),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting, reason):
    with pytest.raises(PlanError, match=reason):
        configured(FusionConfig(), [setting])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FusionConfig(replay=1.5), "replay: found 1.5"),
        (FusionConfig(window=0), "window: found 0"),
        (FusionConfig(offset_step=-1.0), "offset_step"),
        (FusionConfig(offset=90.0, offset_step=0.01), "more than 1000 stages"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(config, reason):
    with pytest.raises(PlanError, match=reason):
        progressive_stages(config, (0, 5))


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(PlanError, match="choose from default"):
        preset("best")


def test_every_value_of_a_plan_can_be_set():
    for field in fields(FusionConfig):
        value = getattr(FusionConfig(), field.name)
        if field.name in ("rates", "weights"):
            continue
        words = {True: "true", False: "false", None: "none"}
        text = words[value] if isinstance(value, bool) or value is None else str(value)
        text = "" if value == () else text
        assert getattr(configured(FusionConfig(), [f"{field.name}={text}"]), field.name) == value
