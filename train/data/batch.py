"""The two forms of data: a clip as a dataset gives it, and a batch as a model takes it."""

from collections.abc import Generator, Iterable
from typing import Protocol, TypedDict, TypeVar

from torch import Tensor

Item_co = TypeVar("Item_co", covariant=True)


class Sample(TypedDict):
    """One clip: video [3, T, H, W], uint8 for pixels, or float32 values; and its caption."""

    video: Tensor
    caption: str


class Batch(TypedDict):
    """Clips in a row: video float [B, 3, T, H, W] in [-1, 1], context float [B, N, context_dim]."""

    video: Tensor
    context: Tensor


class Clips(Protocol[Item_co]):
    """What a stream reads from: items by index, all of them at any time.

    `name(index)`, if there is one, says which file an item comes from.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item_co: ...


def name_of(clips: Clips, index: int) -> str:
    """Where item i comes from, as far as the clips tell."""
    name = getattr(clips, "name", None)
    return f"clip {index}" if name is None else name(index)


def endless(dataloader: Iterable[Batch]) -> Generator[Batch, None, None]:
    """The loader's batches, over and over; ValueError when it has none."""
    while True:
        batch = None
        for batch in dataloader:
            yield batch
        if batch is None:
            raise ValueError("the training data has no batch")
