"""The context branch of EIGent on CogVideoX: a clone of the trunk's first blocks that feeds all of them.

Key layout of FaithFusion's `CogvideoXBranchModel` and of VideoPainter's branch, which has no reference;
checked against class definitions, not against released weights. `norm_ref_intput` is spelled as in the files.

Symbols: B clips, F latent frames, h w latents, N = F h/2 w/2 tokens of a clip, C channels, S text tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.io.model_folders import load_strict, read_config, read_tensors
from faithfusion_studio.repair.diffusers_models import diffusers_class, with_buffers

LATENT = 16
"""Channels of a latent."""
Rope = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions, [N, head]."""


def _transformer_parts() -> Any:
    """The module of diffusers with CogVideoX's blocks and embeddings."""
    kind = diffusers_class("CogVideoXTransformer3DModel")
    return inspect.getmodule(kind)


class EigentBlock(nn.Module):
    """A CogVideoX block that also looks at reference tokens, between its attention and its feed-forward.

    Args:
        reference: False leaves `attn_ref` and its norms out, as VideoPainter's branch does.
        settings: Of `CogVideoXBlock`.
    """

    def __init__(self, reference: bool, **settings: Any) -> None:
        super().__init__()
        kind = _transformer_parts().CogVideoXBlock
        stock = kind(**settings)
        self.norm1, self.attn1, self.norm2, self.ff = (
            stock.norm1,
            stock.attn1,
            stock.norm2,
            stock.ff,
        )
        self.reference = reference
        if reference:
            spare, norm = kind(**settings), kind(**settings).norm1
            self.norm_attn_ref, self.norm_ref_intput, self.attn_ref = spare.norm1, norm, spare.attn1

    def forward(
        self,
        hidden: Float[Tensor, "B N C"],
        text: Float[Tensor, "B S C"],
        temb: Float[Tensor, "B E"],
        rope: Rope | None,
        reference: Float[Tensor, "B N C"] | None,
        weight: Float[Tensor, "B N 1"] | float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Video and text tokens after the block.

        Args:
            hidden: Video tokens.
            text: Text tokens; the reference never reaches them.
            temb: Embedding of the noise level.
            rope: Positions of the video tokens, which the reference tokens share.
            reference: Tokens of the reference clip.
            weight: How strongly the reference counts per token; 1 is the release.
        """
        shown, shown_text, gate, gate_text = self.norm1(hidden, text, temb)
        change, change_text = self.attn1(
            hidden_states=shown, encoder_hidden_states=shown_text, image_rotary_emb=rope
        )
        hidden, text = hidden + gate * change, text + gate_text * change_text
        if self.reference and reference is not None:
            keys, _, _, _ = self.norm_attn_ref(reference, text[:, :0], temb)
            queries, _, gate, _ = self.norm_ref_intput(hidden, text[:, :0], temb)
            seen = reference_attention(self.attn_ref, queries, keys, rope)
            hidden = hidden + gate * seen * weight
        shown, shown_text, gate, gate_text = self.norm2(hidden, text, temb)
        change = self.ff(torch.cat([shown_text, shown], dim=1))
        length = text.shape[1]
        return hidden + gate * change[:, length:], text + gate_text * change[:, :length]


def reference_attention(
    attention: Any,
    queries: Float[Tensor, "B N C"],
    keys: Float[Tensor, "B M C"],
    rope: Rope | None,
) -> Float[Tensor, "B N C"]:
    """Video tokens look at reference tokens; both carry rotary positions."""
    batch, heads = queries.shape[0], attention.heads

    def split(tokens: Tensor) -> Tensor:
        return tokens.view(batch, tokens.shape[1], heads, -1).transpose(1, 2)

    q, k, v = split(attention.to_q(queries)), split(attention.to_k(keys)), attention.to_v(keys)
    if attention.norm_q is not None:
        q = attention.norm_q(q)
    if attention.norm_k is not None:
        k = attention.norm_k(k)
    if rope is not None:
        rotate = diffusers_class("models").embeddings.apply_rotary_emb
        q, k = rotate(q, rope), rotate(k, rope)
    mixed = functional.scaled_dot_product_attention(q, k, split(v))
    mixed = mixed.transpose(1, 2).flatten(2)
    return attention.to_out[1](attention.to_out[0](mixed))


class EigentContextBranch(nn.Module):
    """Sees the noisy clip beside the render and its EIG, and gives the trunk one feature per block of its own.

    Args:
        config: Of the published `config.json`: the trunk's settings with the branch's own `num_layers`.
        reference: False is VideoPainter's branch.
    """

    def __init__(self, config: Mapping[str, Any], *, reference: bool = True) -> None:
        super().__init__()
        parts = _transformer_parts()
        self.config = dict(config)
        known = inspect.signature(parts.CogVideoXTransformer3DModel.__init__).parameters
        given = {key: value for key, value in config.items() if key in known}
        # A trunk without layers, of the branch's settings, is where all parts but the blocks come from.
        stock = parts.CogVideoXTransformer3DModel(
            **{**given, "num_layers": 0, "in_channels": 2 * LATENT + 1, "out_channels": LATENT}
        )
        width = stock.config.num_attention_heads * stock.config.attention_head_dim
        self.patch_embed = stock.patch_embed
        if reference:
            again = parts.CogVideoXTransformer3DModel(
                **{**given, "num_layers": 0, "in_channels": 2 * LATENT + 1}
            )
            self.patch_embed_ref = again.patch_embed
        self.time_proj, self.time_embedding = stock.time_proj, stock.time_embedding
        settings = stock.config
        self.transformer_blocks = nn.ModuleList(
            EigentBlock(
                reference,
                dim=width,
                num_attention_heads=settings.num_attention_heads,
                attention_head_dim=settings.attention_head_dim,
                time_embed_dim=settings.time_embed_dim,
                dropout=settings.dropout,
                activation_fn=settings.activation_fn,
                attention_bias=settings.attention_bias,
                norm_elementwise_affine=settings.norm_elementwise_affine,
                norm_eps=settings.norm_eps,
            )
            for _ in range(config["num_layers"])
        )
        # The files hold these four and nothing computes with them.
        self.norm_final, self.norm_out, self.proj_out = (
            stock.norm_final,
            stock.norm_out,
            stock.proj_out,
        )
        self.branch_x_embedder = nn.Linear(int(config.get("in_channels", LATENT)), width)
        self.branch_blocks = nn.ModuleList(
            nn.Linear(width, width) for _ in range(config["num_layers"])
        )

    def forward(
        self,
        latents: Float[Tensor, "B F 16 h w"],
        render: Float[Tensor, "B F 16 h w"],
        eig: Float[Tensor, "B F 1 h w"],
        reference: Float[Tensor, "B F 16 h w"] | None,
        text: Float[Tensor, "B S E"],
        timestep: Tensor,
        rope: Rope | None,
        beta: float = 0.0,
    ) -> list[Float[Tensor, "B N C"]]:
        """The features to inject, one per block of the branch.

        Args:
            latents: Noisy clip.
            render: Latents of the render, nothing cut out of it.
            eig: Mapped EIG on the latent grid.
            reference: Latents of a per-frame repair of the clip; None without one.
            text: Prompt embedding.
            timestep: Noise level, [B].
            rope: Rotary positions.
            beta: Reference weight per token is 1 + beta (EIG - 0.5); 0 is the release, the paper regulates it.
        """
        temb = self.time_embedding(self.time_proj(timestep).to(latents.dtype))
        tokens = self.patch_embed(text, torch.cat([latents, render, eig], dim=2))
        words, hidden = tokens[:, : text.shape[1]], tokens[:, text.shape[1] :]
        cue, weight = None, 1.0
        if reference is not None and hasattr(self, "patch_embed_ref"):
            shown = torch.cat([torch.zeros_like(latents), reference, torch.zeros_like(eig)], dim=2)
            cue = self.patch_embed_ref(torch.zeros_like(text), shown)[:, text.shape[1] :]
            if beta:
                patches = functional.avg_pool2d(eig.flatten(0, 1), 2).unflatten(0, eig.shape[:2])
                weight = 1 + beta * (patches.flatten(1)[..., None] - 0.5)
        features = []
        for block, project in zip(self.transformer_blocks, self.branch_blocks, strict=True):
            hidden, words = block(hidden, words, temb, rope, cue, weight)
            features.append(project(hidden))
        return features

    @classmethod
    def from_transformer(cls, trunk: Any, num_layers: int) -> EigentContextBranch:
        """A branch to train: the trunk's first blocks, with injections that are zero at first.

        Source: FaithFusion, `CogvideoXBranchModel.from_transformer`.
        """
        config = {**trunk.config, "num_layers": num_layers, "in_channels": trunk.config.in_channels}
        branch = cls({key: v for key, v in config.items() if not key.startswith("_")})
        with torch.no_grad():
            weight = trunk.patch_embed.proj.weight[:, :LATENT]
            for embed in (branch.patch_embed, branch.patch_embed_ref):
                embed.load_state_dict(
                    {
                        **trunk.patch_embed.state_dict(),
                        "proj.weight": torch.cat(
                            [weight, weight, weight.new_zeros(weight[:, :1].shape)], dim=1
                        ),
                    }
                )
            branch.time_embedding.load_state_dict(trunk.time_embedding.state_dict())
            for mine, theirs in zip(
                branch.transformer_blocks, trunk.transformer_blocks, strict=False
            ):
                for target, source in (
                    ("norm1", "norm1"),
                    ("attn1", "attn1"),
                    ("norm2", "norm2"),
                    ("ff", "ff"),
                    ("norm_attn_ref", "norm1"),
                    ("norm_ref_intput", "norm1"),
                    ("attn_ref", "attn1"),
                ):
                    getattr(mine, target).load_state_dict(getattr(theirs, source).state_dict())
            for project in (*branch.branch_blocks, branch.branch_x_embedder):
                nn.init.zeros_(project.weight)
                nn.init.zeros_(project.bias)
        return branch


def load_branch(folder: Path, dtype: torch.dtype = torch.float32) -> EigentContextBranch:
    """A branch from its folder; which of the two kinds it is, its keys tell.

    Raises:
        ModelFolderError: Files are missing, or do not fit.
    """
    tensors = read_tensors(folder, dtype=dtype)
    reference = any(name.startswith("patch_embed_ref.") for name in tensors)
    with torch.device("meta"):
        branch = EigentContextBranch(read_config(folder), reference=reference)
    load_strict(branch, tensors, folder)
    with_buffers(branch)
    return branch


@contextmanager
def injected(
    blocks: nn.ModuleList,
    features: Sequence[Float[Tensor, "B N C"]],
    extreme: Bool[Tensor, " N"] | None,
) -> Iterator[None]:
    """Inside, the trunk's blocks add the branch's features to their video tokens.

    After block j of n the feature j // ceil(n / L) of L is added: each feature serves a run of blocks.
    It is added only where a token is NOT extreme: the branch carries the render, which is to be kept;
    tokens of extreme EIG are left to the trunk. Text tokens stay.

    Args:
        blocks: The trunk's, each returning video and text tokens.
        features: Of the branch.
        extreme: True for tokens without injection; None injects everywhere.

    Source: FaithFusion, `cogvideox_transformer_3d.py`.
    """
    interval = math.ceil(len(blocks) / len(features))
    keep = None if extreme is None else (~extreme)[None, :, None]
    handles = []
    for index, block in enumerate(blocks):
        feature = features[index // interval]
        if keep is not None:
            feature = torch.where(keep, feature, torch.zeros_like(feature))

        def add(_block: nn.Module, _inputs: Any, out: Any, feature: Tensor = feature) -> Any:
            return (out[0] + feature.to(out[0].dtype), out[1])

        handles.append(block.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
