"""Texts, as embeddings that were made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TEXT_TOKENS = 512  # that Wan was trained on; those after the text's end are zero


@dataclass(frozen=True)
class Prompt:
    """Embeddings of one text and of what to stay away from: ``[1, 512, text_dim]``, fp32."""

    positive: Tensor
    negative: Tensor | None


def read_prompts(path: Path, text_dim: int, guidance: float) -> list[Prompt]:
    """The embeddings in a file, padded with zeros to 512 tokens.

    Raises:
        FileNotFoundError, ValueError: no file, none of safetensors, names or widths that are not
            due.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--prompt-embeds {path}: there is no such file")
    try:
        with safe_open(path, "pt") as tensors:
            found = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ValueError(f"--prompt-embeds {path} is no safetensors file: {e}") from None
    if "prompt_embeds" not in found:
        raise ValueError(
            f"--prompt-embeds {path} has {', '.join(found) or 'nothing'}; prompt_embeds is due"
        )
    padded = {}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if name not in found:
            continue
        x = found[name]
        x = x[None] if x.ndim == 2 else x
        if not x.isfinite().all():
            raise ValueError(f"--prompt-embeds {path}: {name} has numbers that are not finite")
        sizes = x.ndim == 3 and 0 < x.shape[1] <= TEXT_TOKENS and len(x) > 0
        if not sizes or x.shape[-1] != text_dim:
            raise ValueError(
                f"--prompt-embeds {path}: {name} is {list(found[name].shape)}, but this model "
                f"takes [1 to {TEXT_TOKENS} tokens, {text_dim}]"
            )
        padded[name] = torch.nn.functional.pad(x, (0, 0, 0, TEXT_TOKENS - x.shape[1]))
    positive, negative = padded["prompt_embeds"], padded.get("negative_prompt_embeds")
    if guidance == 1:
        return [Prompt(x, None) for x in positive.split(1)]
    if negative is None:
        raise ValueError(
            f"--guidance {guidance:g} needs negative_prompt_embeds, which {path} does not have: "
            "add them (of the empty text, say), or give --guidance 1"
        )
    if len(negative) not in (1, len(positive)):
        raise ValueError(
            f"--prompt-embeds {path} has {len(positive)} prompts and {len(negative)} negative "
            "ones: give one for all, or one for each"
        )
    negatives = negative.expand(len(positive), -1, -1).split(1)
    return [Prompt(a, b) for a, b in zip(positive.split(1), negatives)]
