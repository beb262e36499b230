"""What a compiled graph computes once more in its backward rather than keep from the forward."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import traceback
from torch.utils.checkpoint import CheckpointPolicy


@contextmanager
def computed_again(marked: bool = True) -> Iterator[None]:
    """What torch.compile traces here is computed once more in the backward, and not kept for it:
    marked as torch's own selective checkpointing marks nodes as it traces."""
    if not marked or not traceback.has_preserved_node_meta():  # or nothing is traced
        yield
        return
    meta, key = traceback.current_meta, "recompute"
    before = {key: meta[key]} if key in meta else {}
    meta[key] = CheckpointPolicy.MUST_RECOMPUTE
    try:
        yield
    finally:
        del meta[key]
        meta.update(before)
