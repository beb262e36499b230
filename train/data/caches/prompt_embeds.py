"""Text embeddings that were computed elsewhere, found by the name or the caption of a video."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TENSOR = "prompt_embeds"
TEXT_DIM = 4096  # of umT5-XXL, Wan's text encoder: what a clip without text has, 0 tokens of it


class PromptEmbeds:
    """The embedding of each video, [N, dim], read when it is asked for.

    Args:
        path: a folder with `<name>.safetensors` for each video, which has the tensor
            "prompt_embeds"; or one such file for all videos, whose tensors are called by name or by
            caption; or None for no text: [0, 4096]. Tensors are [N, dim] or [1, N, dim].
        videos: name (path in the folder of videos, without suffix) and caption of each.

    Raises ValueError that lists the videos without an embedding, or says what is wrong with one.
    """

    def __init__(self, path: Path | None, videos: Sequence[tuple[str, str]]) -> None:
        self.places: list[tuple[Path, str]] = []
        if path is None:
            return
        if not path.exists():
            raise FileNotFoundError(f"no prompt embeddings at {path}: neither folder nor file")
        if path.is_dir():
            self.places = [(path / f"{name}.safetensors", TENSOR) for name, _ in videos]
            missing = [
                name
                for (file, _), (name, _) in zip(self.places, videos, strict=True)
                if not file.is_file()
            ]
        else:
            with _opened(path) as tensors:
                keys = set(tensors.keys())
            found = [next((key for key in pair if key in keys), "") for pair in videos]
            self.places = [(path, key) for key in found]
            missing = [name for key, (name, _) in zip(found, videos, strict=True) if not key]
        if missing:
            some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"{path} has no embedding of {len(missing)} of {len(videos)} videos: {some}; a "
                f'folder needs NAME.safetensors with the tensor "{TENSOR}" for each, a file a '
                "tensor called by name or caption"
            )
        self._check_shapes()

    def _check_shapes(self) -> None:
        dims: dict[int, str] = {}
        for file, key in self.places:
            with _opened(file) as tensors:
                if key not in tensors.keys():
                    have = ", ".join(tensors.keys())
                    raise ValueError(f'{file} has no tensor "{key}", it has {have}: rename one')
                shape = tensors.get_slice(key).get_shape()
            if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
                raise ValueError(f'"{key}" in {file} is {shape}: make it [N, dim]')
            dims.setdefault(shape[-1], f'"{key}" in {file}')
        if len(dims) > 1:
            said = ", ".join(f"{dim} in {place}" for dim, place in dims.items())
            raise ValueError(f"the embeddings are of several widths ({said}): use one text encoder")

    def __getitem__(self, index: int) -> Tensor:
        if not self.places:
            return torch.zeros(0, TEXT_DIM)
        file, key = self.places[index]
        with _opened(file) as tensors:
            return tensors.get_tensor(key).float().flatten(0, -2)


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file} is no safetensors file: {' '.join(str(e).split())}") from e
