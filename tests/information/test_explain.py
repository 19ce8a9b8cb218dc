"""The explanation of a pixel is the map at that pixel, taken apart."""

from dataclasses import replace

import pytest
import torch

from faithfusion_studio.information import FisherAccumulator, eig_map, explain_pixel
from faithfusion_studio.information.explain import GROUPS, VOID, PixelError
from faithfusion_studio.information.prior import MissingFisherError
from faithfusion_studio.render.views import rasterize_view, render_features
from scenes import HEIGHT, WIDTH, tiny_scene, tiny_world

PLACES = [(0, 0), (5, 3), (6, 4), (11, 7)]


def known(seed: int):
    scene, recorded, novel = tiny_world(seed)
    evidence = FisherAccumulator(scene, noise_std=0.08)
    for camera in recorded:
        evidence.add(camera, None)
    return replace(scene, fisher=evidence.finish()), novel


@pytest.mark.parametrize("seed", range(6))
def test_the_parts_of_a_pixel_add_up_to_the_map(seed: int) -> None:
    scene, novel = known(seed)
    block, trace = (eig_map(scene, novel, form=form) for form in ("block", "trace"))
    for x, y in PLACES:
        found = explain_pixel(scene, novel, x, y)
        assert found.nats == pytest.approx(float(block.eig[y, x]), rel=2e-4)
        assert found.calibrated == pytest.approx(float(block.calibrated[y, x]), abs=1e-3)
        assert sum(found.groups.values()) == pytest.approx(1, abs=1e-5)
        assert float(found.shares.sum()) + found.groups[VOID] == pytest.approx(1, abs=1e-4)
        assert (found.shares.diff() <= 0).all()
        assert float(trace.eig[y, x]) >= found.nats


@pytest.mark.parametrize("seed", range(6))
def test_the_gaussians_of_a_pixel_are_those_that_were_blended_there(seed: int) -> None:
    scene, novel = known(seed)
    count = scene.num_gaussians
    with torch.no_grad():
        view = rasterize_view(scene, novel)
        weights, _, _ = render_features(view, novel, torch.eye(count))
    for x, y in PLACES:
        found = explain_pixel(scene, novel, x, y, view=view)
        assert set(found.rows.tolist()) == set(weights[y, x].nonzero()[:, 0].tolist())


def test_a_parameter_that_is_known_exactly_causes_nothing() -> None:
    """Evidence without end of all but one kind of parameter leaves only that kind as a cause."""
    scene, novel = known(4)
    fisher = scene.fisher
    assert fisher is not None
    diagonal = [a * 13 - a * (a - 1) // 2 for a in range(13)]
    for name, columns in GROUPS.items():
        blocks = torch.zeros_like(fisher.blocks)
        blocks[:, diagonal] = 1e12
        blocks[:, diagonal[columns]] = 0
        sh = fisher.sh if name == "colour" else torch.full_like(fisher.sh, 1e12)
        found = explain_pixel(scene, novel, 6, 4, fisher=replace(fisher, blocks=blocks, sh=sh))
        assert found.groups[name] > 0.999 * (1 - found.groups[VOID]), name


def test_where_nothing_is_the_void_is_the_cause() -> None:
    scene, novel = known(1)
    assert scene.fisher is not None
    scene = replace(
        scene,
        background=replace(scene.background, means=scene.background.means - 100),
        fisher=replace(scene.fisher, sky=None),
    )
    found = explain_pixel(scene, novel, 3, 3)
    assert found.groups[VOID] == 1 and len(found.rows) == len(found.causes()) == 0
    assert found.words() == "mostly because nothing is known behind it: void 100%"


def test_causes_are_the_fewest_gaussians_and_the_words_name_the_parts() -> None:
    scene, novel = known(2)
    found = explain_pixel(scene, novel, 6, 4)
    some, total = found.causes(), float(found.shares.sum())
    assert float(found.shares[: len(some)].sum()) >= 0.5 * total
    assert float(found.shares[: len(some) - 1].sum()) < 0.5 * total
    for name, share in found.groups.items():
        assert (f"{name} {share:.0%}" in found.words()) == (share >= 0.005)


def test_a_pixel_outside_and_a_scene_without_evidence_are_refused() -> None:
    scene, novel = known(0)
    with pytest.raises(PixelError, match=rf"pixel {WIDTH},0; expected a column in 0..{WIDTH - 1}"):
        explain_pixel(scene, novel, WIDTH, 0)
    with pytest.raises(PixelError, match=rf"0..{HEIGHT - 1}"):
        explain_pixel(scene, novel, 0, -1)
    with pytest.raises(MissingFisherError):
        explain_pixel(tiny_scene(), novel, 0, 0)
