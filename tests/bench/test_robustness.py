"""The robustness bench: its mutants are the seeds', its children are watched, and a small run is clean."""

import json

import numpy as np
import pytest

from faithfusion_studio.bench import BenchError, configure, run_bench
from faithfusion_studio.bench.robustness import run as robustness
from faithfusion_studio.bench.robustness.mutants import mutant, seeded
from faithfusion_studio.bench.robustness.samples import SAMPLES, broken_rows
from faithfusion_studio.bench.robustness.trust import ESCAPES, escapes, nonfinite
from faithfusion_studio.bench.robustness.worker import judged, opened
from faithfusion_studio.io.splat_files import usable_rows


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_good_until_it_is_damaged(tmp_path, name):
    sample = SAMPLES[name]
    path = sample.make(tmp_path, 24)
    count = opened(sample, tmp_path if sample.by_folder else path)
    assert count in (None, 24)
    assert sample.declared(path.read_bytes()) in (None, count)
    data = path.read_bytes()
    several = [mutant(data, sample.container, seeded(0, name, i)) for i in range(12)]
    assert several == [mutant(data, sample.container, seeded(0, name, i)) for i in range(12)]
    assert len(set(several) - {data}) > 8


FOUND = [("SOG", 1719), ("SOG", 6823), ("DriveStudio .pth", 257), ("DriveStudio .pth", 657)]
FOUND += [("DriveStudio .pth", 725), ("DriveStudio .pth", 1045), ("DriveStudio .pth", 8521)]
"""Mutants of seed 0 that were once opened with Gaussians missing and nothing said, or refused in no words."""


@pytest.mark.parametrize(("name", "index"), FOUND)
def test_what_the_full_run_found_stays_mended(tmp_path, name, index):
    sample = SAMPLES[name]
    path = sample.make(tmp_path, 24)
    data = mutant(path.read_bytes(), sample.container, seeded(0, name, index))
    path.write_bytes(data)
    verdict, told = judged(sample, path, data, 24)
    assert verdict in ("opened", "refused"), told


def test_damage_inside_a_packed_file_still_unpacks(tmp_path):
    import gzip
    import zlib

    path = SAMPLES["SPZ 3"].make(tmp_path, 24)
    whole = 0
    for index in range(40):
        data = mutant(path.read_bytes(), "gzip", np.random.default_rng(index))
        try:
            gzip.decompress(data)
            whole += 1
        except (OSError, EOFError, zlib.error):
            pass
    assert whole >= 10


def test_broken_rows_are_as_many_as_asked():
    for seed in range(20):
        assert (
            int((~usable_rows(broken_rows(24, 1 + seed % 19, seed).background)).sum())
            == 1 + seed % 19
        )


def test_no_path_leads_outside_and_broken_numbers_are_counted():
    tried, read, unclear = escapes()
    assert (tried, read, unclear) == (3 * len(ESCAPES), 0, [])
    assert nonfinite(12, 5) == (12, [])


def test_a_small_run_is_clean_and_told_as_a_table():
    config = configure(
        "robustness", quick=True, formats=("SPZ 3", "points .npz"), mutants=30, kills=8
    )
    report = run_bench("robustness", config)
    told = json.loads(json.dumps(report.to_json()))
    assert told["mutants"] == 60
    assert [row["format"] for row in told["table"]] == ["SPZ 3", "points .npz"]
    for row in told["table"]:
        assert row["refused"] + row["opened"] == 30 and row["refused"] > 5 and row["opened"] > 0
    bad = {key: told[key] for key in told if key in robustness_keys()}
    assert set(bad.values()) == {0.0}, report.notes
    assert told["counts"]["kills"] == 8 and told["counts"]["pickles"] == 30
    assert "| SPZ 3 |" in report.to_markdown()


def robustness_keys() -> set[str]:
    from faithfusion_studio.bench.figures import ANYWHERE, FIGURES

    return set(FIGURES["robustness"]) & set(ANYWHERE)


def test_a_child_that_dies_is_counted_and_the_rest_goes_on(monkeypatch, tmp_path):
    config = configure("robustness", quick=True, mutants=3)
    tallies = {"splat": robustness.Tally(), "ksplat": robustness.Tally()}
    calls = []

    def child(order, progress, _tallies):
        calls.append(order)
        if len(calls) == 1:
            progress.write_text("splat\n1")
            return {}, "crash"
        return {}, None

    monkeypatch.setattr(robustness, "_child", child)
    robustness._open_mutants(("splat", "ksplat"), config, tallies)
    assert tallies["splat"].counts["crash"] == 1 and tallies["splat"].worst == ["splat 1: crash"]
    assert calls[1]["skip"] == [["splat", 1]] and calls[1]["names"] == ["splat", "ksplat"]


def test_a_real_child_that_is_killed_is_seen(monkeypatch, tmp_path):
    popen = robustness.subprocess.Popen

    def dying(command, **options):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return popen([command[0], "-c", code], **options)

    monkeypatch.setattr(robustness.subprocess, "Popen", dying)
    progress = tmp_path / "progress"
    progress.write_text("splat\n7")
    assert robustness._child({}, progress, {}) == ({}, "crash")


def test_an_unknown_format_is_named():
    with pytest.raises(BenchError, match="--formats: found 'spzz'; choose from 'native .ckpt'"):
        run_bench("robustness", configure("robustness", quick=True, formats=("spzz",)))
    with pytest.raises(BenchError, match="--mutants"):
        run_bench("robustness", configure("robustness", quick=True, mutants=0))
