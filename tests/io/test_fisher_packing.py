import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from io_samples import a_fisher, random_blocks, unpacked

from faithfusion_studio.io.fisher_packing import (
    diagonal_of,
    pack_correlations,
    pack_logs,
    put_fisher,
    take_fisher,
    unpack_blocks,
    unpack_logs,
)
from faithfusion_studio.io.tensor_table import TensorTable


def stored(blocks: torch.Tensor) -> torch.Tensor:
    diagonal = unpack_logs(pack_logs(diagonal_of(blocks)), (len(blocks), 13))
    return unpack_blocks(pack_correlations(blocks), diagonal)


def relative_error(blocks: torch.Tensor, again: torch.Tensor) -> float:
    """Largest difference, in units of the geometric mean of the two diagonal entries."""
    true, read = unpacked(blocks), unpacked(again)
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", true), 1e-300))
    return float((np.abs(true - read) / scale[:, :, None] / scale[:, None, :]).max())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(13, 60))
def test_blocks_come_back_within_a_thousandth_of_their_diagonal(seed, rank):
    blocks = random_blocks(20, seed, rank)
    assert relative_error(blocks, stored(blocks)) < 1.5e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 13))
def test_blocks_are_positive_semidefinite_when_read_whatever_was_written(seed, rank):
    blocks = random_blocks(20, seed, rank)
    blocks += blocks.abs() * 1e-3 * torch.randn(blocks.shape)  # no longer a sum of squares
    read = unpacked(stored(blocks))
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", read), 1e-300))
    correlations = read / scale[:, :, None] / scale[:, None, :]
    assert np.linalg.eigvalsh(correlations).min() > -1e-5


def test_weak_directions_keep_their_information():
    blocks = random_blocks(200, 3, rank=30)
    true, read = unpacked(blocks), unpacked(stored(blocks))
    scale = np.sqrt(np.einsum("nii->ni", true))
    normal = scale[:, :, None] * scale[:, None, :]
    log_det = [np.linalg.slogdet(m / normal + 1e-3 * np.eye(13))[1] for m in (true, read)]
    assert np.abs(log_det[0] - log_det[1]).max() < 0.05


def test_rows_without_evidence_stay_exactly_zero():
    blocks = random_blocks(6)
    blocks[2] = 0
    rows, columns = np.triu_indices(13)
    blocks[4, (rows == 12) | (columns == 12)] = 0  # one parameter never seen
    read = stored(blocks)
    assert not read[2].any()
    assert not read[4, (rows == 12) | (columns == 12)].any()
    assert (diagonal_of(read)[[0, 1, 3, 5]] > 0).all()


def test_values_that_are_not_finite_count_as_no_evidence():
    blocks = random_blocks(3)
    blocks[1, 5] = float("nan")
    read = stored(blocks)
    assert torch.isfinite(read).all()
    logs = unpack_logs(pack_logs(torch.tensor([1.0, float("inf"), float("nan"), -2.0])), (4,))
    assert logs[1:].tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(2.0**-60, 2.0**60), min_size=1, max_size=30))
def test_logarithms_keep_seven_parts_in_ten_thousand(values):
    true = torch.tensor(values, dtype=torch.float32)
    read = unpack_logs(pack_logs(true), (len(values),))
    assert float(((read - true).abs() / true).max()) < 7.5e-4


def test_saving_again_and_again_does_not_drift():
    blocks = random_blocks(200, 8)
    read = blocks
    for _ in range(5):
        read = stored(read)
    assert relative_error(blocks, read) < 2e-3


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_evidence_goes_through_tensors_and_description(rows):
    fisher = a_fisher(max(rows, 1))
    if rows == 0:
        fisher = type(fisher)(torch.zeros(0, 91), torch.zeros(0, 3, 3), 0.1, 1)
    tensors: dict[str, torch.Tensor] = {}
    entry = put_fisher(tensors, fisher)
    again = take_fisher(TensorTable(tensors), entry)
    assert again.blocks.shape == fisher.blocks.shape
    assert again.sh.shape == fisher.sh.shape
    assert (again.noise_std, again.num_views) == (fisher.noise_std, fisher.num_views)
    if fisher.sky is not None:
        torch.testing.assert_close(again.sky, fisher.sky, rtol=1e-3, atol=0)
        torch.testing.assert_close(again.calibration, fisher.calibration, rtol=0, atol=0)


def test_evidence_takes_less_than_150_bytes_per_gaussian():
    fisher = a_fisher(2000, coefficients=0)
    tensors: dict[str, torch.Tensor] = {}
    put_fisher(tensors, fisher)
    assert sum(t.nbytes for t in tensors.values()) < 150 * 2000
