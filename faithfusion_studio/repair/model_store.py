"""The weights of the large engines on this machine: what each needs, where it lies, and its licence.

Nothing is ever fetched. The layouts are those of the published class definitions and file listings;
they were checked against class definitions, not against released weights.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faithfusion_studio.io.user_settings import change_settings, read_settings
from faithfusion_studio.io.weights import cache_folder, file_hash
from faithfusion_studio.repair.base import MissingWeightsError, RepairError

CHECKED = "checked against class definitions, not against released weights"
SUMS = "SHA256SUMS"
"""A file of this name in the weights folder is believed: its lines are "hash  path"."""


class LicenceError(RepairError):
    """A licence that has to be read and accepted before its model is loaded."""


@dataclass(frozen=True)
class Licence:
    """Under which terms weights are given by their publisher."""

    name: str
    terms: str
    """One sentence."""
    url: str
    free: bool = False
    """True where any use is allowed, so that nothing has to be accepted."""


@dataclass(frozen=True)
class ModelPart:
    """A file, or a folder with `config.json` and safetensors, below the weights folder."""

    path: str
    size: int
    """About how large, bytes."""
    what: str
    optional: bool = False


@dataclass(frozen=True)
class ModelEntry:
    """What one engine loads."""

    engine: str
    """Key of `REPAIRERS`."""
    folder: str
    """Below the weights folder."""
    source: str
    """Where a person gets it."""
    licence: Licence
    parts: tuple[ModelPart, ...]

    @property
    def size(self) -> int:
        """About how large all that is needed is, bytes."""
        return sum(part.size for part in self.parts if not part.optional)


APACHE = Licence("Apache-2.0", "Any use.", "https://www.apache.org/licenses/LICENSE-2.0", free=True)
NVIDIA = Licence(
    "NVIDIA non-commercial licence and Stability AI's licence of SD-Turbo",
    "Research and evaluation only; no commercial use of the weights or of what they make.",
    "https://huggingface.co/nvidia/difix_ref",
)
COGVIDEOX = Licence(
    "CogVideoX licence, and VideoPainter's for its branch",
    "Academic use; commercial use needs a registration with the publisher.",
    "https://huggingface.co/THUDM/CogVideoX-5b-I2V/blob/main/LICENSE",
)

CATALOG: dict[str, ModelEntry] = {
    entry.engine: entry
    for entry in (
        ModelEntry(
            "difix",
            "difix_ref",
            "https://huggingface.co/nvidia/difix_ref (or nvidia/difix), without its *.py files: "
            "hf download nvidia/difix_ref --exclude '*.py'",
            NVIDIA,
            (
                ModelPart("unet", 3_463_642_896, "U-Net, 866 M parameters"),
                ModelPart("vae", 338_700_000, "autoencoder with skip convolutions and LoRA"),
                ModelPart("text_encoder", 1_361_600_000, "CLIP; needed once, for the prompt", True),
                ModelPart("tokenizer", 1_600_000, "needed once, for the prompt", True),
                ModelPart("prompt_embeds.safetensors", 160_000, "instead of these two", True),
                ModelPart("model_last.pkl", 3_500_000_000, "a training file on top", True),
            ),
        ),
        ModelEntry(
            "eigent-vace",
            "wan_vace_1.3b",
            "https://huggingface.co/Wan-AI/Wan2.1-VACE-1.3B-diffusers",
            APACHE,
            (
                ModelPart("transformer", 4_308_000_000, "Wan2.1-VACE-1.3B, 2154 M parameters"),
                ModelPart("vae", 507_000_000, "its autoencoder, 127 M parameters"),
                ModelPart("prompt_embeds.safetensors", 4_200_000, "the encoded prompt", True),
                ModelPart("text_encoder", 11_360_000_000, "UMT5; instead, needed once", True),
                ModelPart("tokenizer", 21_000_000, "needed once, for the prompt", True),
                ModelPart("lora.safetensors", 320_000_000, "an adapter for few steps", True),
                ModelPart(
                    "taew2_1.safetensors",
                    22_600_000,
                    "TAEHV (MIT, github.com/madebyollin/taehv), pictures while it works; .pth too",
                    True,
                ),
            ),
        ),
        ModelEntry(
            "eigent-cogvideox",
            "eigent_cogvideox",
            "https://huggingface.co/THUDM/CogVideoX-5b-I2V (transformer, vae, scheduler) and a "
            "branch: https://huggingface.co/TencentARC/VideoPainter (checkpoints/branch), or your "
            "own EIGent branch; FaithFusion's is unpublished",
            COGVIDEOX,
            (
                ModelPart("transformer", 11_140_000_000, "CogVideoX-5b-I2V, 5570 M parameters"),
                ModelPart("vae", 431_000_000, "its autoencoder, 216 M parameters"),
                ModelPart("scheduler", 1_000, "its noise schedule"),
                ModelPart("branch", 846_000_000, "the context branch, 296 to 819 M parameters"),
                ModelPart("prompt_embeds.safetensors", 1_900_000, "the encoded prompt", True),
                ModelPart("prompt.txt", 200, "the prompt a branch was trained with", True),
                ModelPart("text_encoder", 9_500_000_000, "T5; instead, needed once", True),
                ModelPart("tokenizer", 800_000, "needed once, for the prompt", True),
            ),
        ),
    )
}


def weights_folder() -> Path:
    """Where weights are looked for: FF_STUDIO_WEIGHTS, else the settings' "weights", else the cache.

    Raises:
        SettingsError: The settings file is damaged.
    """
    chosen = os.environ.get("FF_STUDIO_WEIGHTS") or read_settings().get("weights")
    return Path(chosen).expanduser() if chosen else cache_folder() / "weights"


def model_folder(entry: ModelEntry) -> Path:
    """Where the files of an engine belong."""
    return weights_folder() / entry.folder


def missing_parts(entry: ModelEntry) -> list[ModelPart]:
    """What an engine needs and is not there."""
    folder = model_folder(entry)
    return [part for part in entry.parts if not part.optional and not (folder / part.path).exists()]


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where nothing is."""
    return sum(file.stat().st_size for file in files_below(path))


def files_below(path: Path) -> Iterator[Path]:
    """A file, or all files below a folder in order."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(found for found in path.rglob("*") if found.is_file())


def accepted_on(entry: ModelEntry) -> str | None:
    """The day on which a licence was accepted; None where it was not, "" where none is asked for."""
    if entry.licence.free:
        return ""
    found = read_settings().get("accepted_licences", {}).get(entry.engine)
    return str(found["on"]) if found and found.get("licence") == entry.licence.name else None


def accept_licence(entry: ModelEntry) -> None:
    """Remember that the person at this machine accepts the licence of an engine's weights."""
    accepted = dict(read_settings().get("accepted_licences", {}))
    accepted[entry.engine] = {
        "licence": entry.licence.name,
        "on": datetime.date.today().isoformat(),
    }
    change_settings(accepted_licences=accepted)


def accept_by_name(engine: str) -> ModelEntry:
    """`accept_licence` for the engine of this name; returns its entry.

    Raises:
        RepairError: The engine asks for no acceptance.
    """
    entry = CATALOG.get(engine)
    if entry is None or entry.licence.free:
        asking = [key for key, e in CATALOG.items() if not e.licence.free]
        raise RepairError(
            f"the engine {engine!r} asks for no acceptance; those that do: {', '.join(asking)}."
        )
    accept_licence(entry)
    return entry


def required_folder(entry: ModelEntry, *, without: tuple[str, ...] = ()) -> Path:
    """The folder of an engine's weights, after making sure that they are there and may be used.

    Args:
        entry: The engine.
        without: Parts that may be missing, such as one that is to be trained.

    Raises:
        MissingWeightsError: Something is not there: what, how big, its licence, where to put it.
        LicenceError: The licence was not accepted yet.
        RepairError: A file is not the one `SHA256SUMS` names.
    """
    folder = model_folder(entry)
    missing = [part for part in missing_parts(entry) if part.path not in without]
    if missing:
        part, licence = missing[0], entry.licence
        raise MissingWeightsError(
            f"{folder / part.path} ({part.what}, {gigabytes(part.size)}) is missing; get it from "
            f"{entry.source} under the {licence.name} and put it there, or choose another folder "
            "with --weights; nothing is fetched unasked."
        )
    if accepted_on(entry) is None:
        raise LicenceError(
            f"these weights are under the {entry.licence.name} ({entry.licence.url}): "
            f"{entry.licence.terms} Accept it once with `ff-studio engines --accept {entry.engine}`."
        )
    _verify(entry)
    return folder


def provenance_note(entry: ModelEntry) -> str:
    """The sentence that every frame made with these weights carries."""
    day = accepted_on(entry)
    accepted = f", accepted on {day}" if day else ""
    return f"Made with the weights {entry.folder} ({entry.licence.name}{accepted})."


def gigabytes(size: int) -> str:
    """For people: "3.5 GB", "340 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size, 1e5) / 1e6:.1f} MB"


def known_hashes() -> dict[str, str]:
    """SHA-256 by path below the weights folder, from its `SHA256SUMS`."""
    path = weights_folder() / SUMS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text(errors="replace").splitlines())
    return {pair[1].lstrip("*"): pair[0].lower() for pair in pairs if len(pair) == 2}


def _verify(entry: ModelEntry) -> None:
    """Compare an engine's files with the hashes that are known, each file once while unchanged."""
    root, wanted = weights_folder(), known_hashes()
    seen = dict(read_settings().get("verified", {})) if wanted else {}
    before = dict(seen)
    for path in files_below(model_folder(entry)):
        name = path.relative_to(root).as_posix()
        if name not in wanted:
            continue
        stamp = f"{path.stat().st_size} {path.stat().st_mtime_ns} {wanted[name]}"
        if seen.get(str(path)) == stamp:
            continue
        if file_hash(path) != wanted[name]:
            raise RepairError(
                f"{path}: is not the file that {root / SUMS} names (its SHA-256 differs); fetch it "
                "again."
            )
        seen[str(path)] = stamp
    if seen != before:
        change_settings(verified=seen)
