"""Captions -> text embeddings, with a text encoder that transformers loads."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNUSED = ("decoder.", "pooler.", "lm_head.")  # what no hidden state of an encoder comes from


class CaptionEmbeds:
    """The embedding of each caption, fp32 [N, dim] on the CPU, computed when it is asked for.

    The last hidden state of a text encoder for a caption's tokens, `tokens` at most and no padding,
    in the dtype that it was saved in.

    Args:
        folder: of a text encoder and its tokenizer as transformers saves them, in one folder, or in
            `text_encoder` and `tokenizer` as in a pipeline of diffusers. Of an encoder-decoder the
            encoder is used.
        captions: one for each video.

    Raises ValueError in one line where transformers or the folder is wanting, or lacks a weight,
    where transformers would make one up.
    """

    def __init__(
        self, folder: Path, captions: Sequence[str], *, tokens: int, device: torch.device
    ) -> None:
        try:
            import transformers
        except ImportError as e:
            raise ValueError("encoding text takes transformers: pip install transformers") from e
        model, tokenizer = _folders(folder)
        if tokens < 1:
            raise ValueError(f"text_tokens={tokens} must be positive")
        try:
            config: Any = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
            name = (config.architectures or [""])[0]
            kind = getattr(transformers, name, transformers.AutoModel)
            options: dict[str, Any] = dict(output_loading_info=True, ignore_mismatched_sizes=True)
            transformers.logging.set_verbosity_error()  # of the weights below it prints a table
            loaded, told = kind.from_pretrained(
                model, dtype="auto", local_files_only=True, **options
            )
            words: Any = transformers.AutoTokenizer.from_pretrained(
                tokenizer, local_files_only=True
            )
        except Exception as e:  # of safetensors, tokenizers and json, as it comes
            said = " ".join(str(e).split()) or type(e).__name__
            raise ValueError(f"transformers cannot load {folder}: {said}") from e
        made_up = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
        if names := sorted(name for name in made_up if not name.startswith(UNUSED)):
            raise ValueError(
                f"{len(names)} weights of {kind.__name__} are not in {model}, or of another size: "
                + ", ".join(names[:3])
            )
        if hasattr(loaded, "get_decoder") and config.is_encoder_decoder:
            loaded = loaded.get_encoder()
        self.model = loaded.to(device).eval().requires_grad_(False)
        self.vocabulary = self.model.get_input_embeddings().num_embeddings
        self.tokenizer, self.tokens, self.captions = words, tokens, captions

    @torch.inference_mode()
    def __getitem__(self, index: int) -> Tensor:
        given = self.tokenizer(
            self.captions[index], truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        if not given["input_ids"].numel():
            return torch.zeros(0, self.model.config.hidden_size)
        if (largest := int(given["input_ids"].max())) >= self.vocabulary:
            raise ValueError(
                f"the tokenizer gives token {largest}, but the text encoder knows "
                f"{self.vocabulary}: they are not of one model"
            )
        names, device = ("input_ids", "attention_mask"), self.model.device
        out = self.model(**{name: given[name].to(device) for name in names})
        return out.last_hidden_state[0].float().cpu()


def fingerprint(folder: Path) -> str:
    """Of the encoder's files: their names, sizes, and both ends of each."""
    digest = hashlib.sha256()
    for file in sorted(p for part in set(_folders(folder)) for p in part.iterdir() if p.is_file()):
        size = file.stat().st_size
        digest.update(repr((file.name, size)).encode())
        with open(file, "rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(0, size - (1 << 20)))
            digest.update(data.read())
    return digest.hexdigest()[:32]


def _folders(folder: Path) -> tuple[Path, Path]:
    """Of the model and of its tokenizer."""
    both = folder / "text_encoder", folder / "tokenizer"
    if not both[0].is_dir():
        both = folder, folder
    if not (both[0] / "config.json").is_file() or not both[1].is_dir():
        raise ValueError(
            f"{folder} has no text encoder: give --text-encoder a folder with config.json, weights "
            "and a tokenizer's files, or one with text_encoder and tokenizer in it"
        )
    return both
