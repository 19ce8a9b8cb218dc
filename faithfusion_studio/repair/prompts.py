"""Prompts are constant, so their embeddings are computed once and the text encoders are dropped."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithfusion_studio.errors import StudioError, reason_of
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.model_folders import read_file
from faithfusion_studio.repair.base import MissingWeightsError, RepairError

FILE_NAME = "prompt_embeds.safetensors"
Encoder = Literal["CLIPTextModel", "T5EncoderModel", "UMT5EncoderModel"]


def prompt_embedding(
    folder: Path, prompt: str, encoder: Encoder, *, length: int, trim: bool = False
) -> Float[Tensor, "1 N C"]:
    """The embedding of an engine's prompt: from its cache file, else encoded now and cached.

    Args:
        folder: Holds `prompt_embeds.safetensors`, or `text_encoder` and `tokenizer`.
        prompt: The text; a cache file made for another one is not used.
        encoder: Class of the text encoder.
        length: Tokens, padded or cut.
        trim: Zero the embeddings of padding, as Wan does.

    Raises:
        MissingWeightsError: Neither is there.
        RepairError: The encoder cannot be loaded.
    """
    cached = folder / FILE_NAME
    if cached.is_file() and _prompt_of(cached) in (None, prompt):
        found = read_file(cached).get("prompt_embeds")
        if found is None or found.ndim != 3:
            raise RepairError(
                f"{cached}: holds no tensor prompt_embeds [1, N, C]; delete it and it is made again."
            )
        return found
    if not (folder / "text_encoder").is_dir() or not (folder / "tokenizer").is_dir():
        raise MissingWeightsError(
            f"{cached} is missing, and so are {folder / 'text_encoder'} and tokenizer from which "
            "it could be made once; fetch these two folders and put them there."
        )
    embedding = _encode(folder, prompt, encoder, length, trim)
    # A folder that cannot be written only means that the next start encodes again.
    with suppress(StudioError), write_atomically(cached, RepairError) as temporary:
        save_file({"prompt_embeds": embedding.contiguous()}, temporary, {"prompt": prompt})
    return embedding


def engine_prompt(folder: Path, default: str) -> str:
    """The prompt weights were trained with: that in the folder's prompt.txt, else the given one."""
    path = folder / "prompt.txt"
    return path.read_text(errors="replace").strip() if path.is_file() else default


def _prompt_of(path: Path) -> str | None:
    """What a cache file was made for; None where it does not say."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return (file.metadata() or {}).get("prompt")
    except Exception as error:  # whatever a damaged header raises
        raise RepairError(f"{path}: is damaged; delete it and it is made again.") from error


def _encode(folder: Path, prompt: str, encoder: Encoder, length: int, trim: bool) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optional packages and its own deprecations
            import transformers

            transformers.logging.set_verbosity_error()
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder / "tokenizer", local_files_only=True
            )
            model: Any = getattr(transformers, encoder).from_pretrained(
                folder / "text_encoder", local_files_only=True, use_safetensors=True
            )
            tokens = tokenizer(
                prompt,
                max_length=length,
                padding="max_length",
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                mask = tokens.attention_mask if trim else None
                embedding = model.eval()(tokens.input_ids, attention_mask=mask)[0].float()
    except ImportError as error:
        raise RepairError(
            f"encoding the prompt needs transformers ({error}); install the extra: pip install "
            f"'faithfusion-studio[diffusion]', or bring {FILE_NAME}."
        ) from error
    except Exception as error:  # transformers raises a dozen kinds on a damaged folder
        raise RepairError(
            f"{folder}: its tokenizer or text_encoder cannot be used "
            f"({reason_of(error)}); fetch both again."
        ) from error
    return embedding * tokens.attention_mask[..., None] if trim else embedding
