"""Whether a text or image encoder's folder has all of its weights; transformers would make some
up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from transformers.utils import logging

from flexsparse.diffusers.generate.weights import shapes_in


def check_encoder(folder: Path, kind: str) -> None:
    """ValueError for weights that are missing, or of another size; no weights are read.

    transformers itself looks for them, on the meta device, since it knows which of a model's
    weights are tied, or stored by other names.
    """
    cls = getattr(transformers, kind, None)
    config = json.loads((folder / "config.json").read_text())
    if cls is None or not shapes_in(folder) or "quantization_config" in config:
        return  # of another library, pickles, or stored otherwise
    try:
        with _silence():
            options = dict(output_loading_info=True, device_map="meta", local_files_only=True)
            _, found = cls.from_pretrained(folder, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as e:
        said = " ".join(str(e).split())
        raise ValueError(f"{folder}: no {kind} can be made ({said})") from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} first")


@contextmanager
def _silence() -> Iterator[None]:
    """Within it, transformers reports nothing by itself."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
