"""Weights are read as numbers, never as code, and proven by their content."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from faithfusion_studio.io import weights as W


def test_the_content_hash_does_not_depend_on_container_or_order(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"module.a": tensors["a"], "module.b": tensors["b"]}, tmp_path / "x.pth")
    first, second = (W.read_weights(tmp_path / n) for n in ("x.safetensors", "x.pth"))
    assert W.content_hash(first) == W.content_hash(second) == W.content_hash(tensors)
    assert W.content_hash({**tensors, "a": 2 * tensors["a"]}) != W.content_hash(tensors)
    assert W.content_hash({**tensors, "b": tensors["b"].T}) != W.content_hash(tensors)


def test_arrays_come_out_of_a_pickle_and_nothing_else_does():
    arrays = {"net": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    for protocol in (3, 4):
        found = W.read_array_pickle(pickle.dumps(arrays, protocol=protocol))
        np.testing.assert_array_equal(found["net"]["kernel"], arrays["net"]["kernel"])

    class Evil:
        def __reduce__(self):
            return print, ("this must not be printed",)

    with pytest.raises(W.WeightsError, match="builtins.print; only NumPy arrays"):
        W.read_array_pickle(pickle.dumps({"x": Evil()}))
    with pytest.raises(W.WeightsError, match="damaged"):
        W.read_array_pickle(pickle.dumps(arrays)[:-9])
    with pytest.raises(W.WeightsError, match="holds a list"):
        W.read_array_pickle(pickle.dumps([1]))


def test_what_is_not_weights_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(W.WeightsError, match="cannot be read"):
        W.read_weights(tmp_path / "absent.pth")
    (tmp_path / "text").write_text("not weights at all")
    with pytest.raises(W.WeightsError, match="not readable as weights"):
        W.read_weights(tmp_path / "text")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(W.WeightsError, match="holds a list"):
        W.read_weights(tmp_path / "list.pth")


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("FF_STUDIO_CACHE", str(tmp_path))
    assert W.cache_folder() == tmp_path
    monkeypatch.delenv("FF_STUDIO_CACHE")
    assert W.cache_folder().name == "faithfusion-studio"
