"""python -m train.data.encode_prompts --text-encoder DIR --prompts TEXT_OR_FILE --out FILE

Encodes prompts, and the negative one for guidance, once, into the file that `--prompt-embeds` of
`python -m flexsparse.diffusers.generate` reads for Wan's pipelines: safetensors, `prompt_embeds`
[prompts, tokens, width] and `negative_prompt_embeds` [1, tokens, width], fp32, zero after each
text's end.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from flexsparse.diffusers.generate.files import check_free, check_writable, write_tensors
from models.wan.config import TEXT_TOKENS
from train import log
from train.data.caches.processes import device_of
from train.data.caches.text_encoder import CaptionEmbeds
from train.data.progress import WorkProgress


@dataclass(kw_only=True, frozen=True)
class Options:
    text_encoder: Path
    """Folder of a text encoder that transformers saved, or of a pipeline of diffusers'."""
    prompts: str
    """A text, or a file with a text in each line."""
    out: Path
    """A new file, .safetensors."""
    negative_prompt: str = ""
    """What guidance stays away from, one text for all."""
    text_tokens: int = TEXT_TOKENS
    """At which texts are cut, and up to which zeros follow them."""


def encode(o: Options) -> Path:
    """Write the embeddings; returns where they are, as :func:`write_whole` does.

    Raises ValueError or OSError in one line: no prompts, a file that exists or cannot be written,
    more tokens than the model takes, and whatever `CaptionEmbeds` does.
    """
    if o.text_tokens > TEXT_TOKENS:
        raise ValueError(f"text_tokens={o.text_tokens}, but Wan takes {TEXT_TOKENS} at most")
    check_free(o.out)
    check_writable(o.out)
    texts = [*read_prompts(o.prompts), o.negative_prompt]
    embeds = CaptionEmbeds(o.text_encoder, texts, tokens=o.text_tokens, device=device_of(0))
    rows = []
    with WorkProgress("encoding prompts", len(texts)) as progress:
        for number, text in enumerate(texts):
            progress.show(number, text)
            rows.append(embeds[number])
    if not any(map(len, rows)):
        raise ValueError("no prompt has a token: give a text")
    padded = torch.stack([F.pad(row, (0, 0, 0, o.text_tokens - len(row))) for row in rows])
    tensors = {"prompt_embeds": padded[:-1], "negative_prompt_embeds": padded[-1:]}
    return write_tensors(o.out, tensors)


def read_prompts(given: str) -> list[str]:
    """A text, or the lines of a file that are not empty; ValueError if there is none."""
    path = Path(given)
    if not os.path.isfile(given):  # of a long text, Path.is_file says that the name is too long
        if os.path.isdir(given) or path.suffix == ".txt":
            raise ValueError(f"--prompts {given} is no file: give a text, or a file of texts")
        texts = [given]
    else:
        try:
            texts = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as e:
            raise ValueError(f"--prompts {given} is no text in UTF-8: {e}") from None
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"--prompts {given!r} has no text")
    return texts


def main(argv: Sequence[str]) -> int:
    """0 when all is written, 1 for an error, 130 for Ctrl-C."""
    log.to_console()
    options = tyro.cli(Options, prog="python -m train.data.encode_prompts", args=argv)
    try:
        log.logger.info("%s", encode(options))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        said = " ".join(str(error).split()) or "out of memory"
        if isinstance(error, torch.OutOfMemoryError):
            said += " To encode on the CPU, hide the GPU: CUDA_VISIBLE_DEVICES="
        log.logger.error("error: %s", said)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted: nothing is written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
