"""What a run shows in TensorBoard, and how much memory it takes."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from train.log import logger
from train.sparsity.attention_stats import LayerStats, kept_pixels
from train.titan import BaseLogger, LoggerContainer, MetricsProcessor, TensorBoardLogger

DARK = 0.2  # of a pixel's brightness where it is shown as dropped


class Metrics(MetricsProcessor):
    """torchtitan's loggers (TensorBoard, W&B), under our own names and with images."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        enable_tensorboard: bool = True

    @property
    def shown(self) -> bool:
        """Whether this rank has a logger."""
        return isinstance(self.logger, LoggerContainer)

    def scalars(self, step: int, **values: float) -> None:
        """Log values by name; `group__name` becomes "group/name"."""
        named = {name.replace("__", "/"): value for name, value in values.items()}
        with self._surviving_a_full_disk():
            self.logger.log(named, step)

    def clips(self, name: str, clips: Tensor, step: int) -> None:
        """Log clips [B, C, T, H, W] in [-1, 1] as an image: a row each, time from left to right."""
        with self._surviving_a_full_disk():
            for writer in self._tensorboards():
                writer.add_image(name, film_strip(clips), step)

    def attention(self, layers: Sequence[LayerStats], clips: Tensor, step: int) -> None:
        """Log what each layer did to the first of the clips [B, C, T, H, W].

        Curves for all; where they are chosen, the key tiles of each query tile as a histogram and
        those of the tile in the middle as an image; and the queries that stay as an image where
        some do not.
        """
        curves = {}
        for i, layer in enumerate(layers):
            curves[f"attention__layer{i}__sparsity"] = layer.sparsity
            curves[f"attention__layer{i}__flops_per_clip"] = layer.flops
        self.scalars(step, **curves)
        with self._surviving_a_full_disk():
            for i, layer in enumerate(layers):
                for writer in self._tensorboards():
                    name = f"attention/layer{i}"
                    if layer.admitted is not None:
                        writer.add_histogram(f"{name}/admitted_tiles", layer.admitted, step)
                    if layer.chosen is not None:
                        image = chosen_tiles(clips[0], layer.chosen[0])
                        writer.add_image(f"{name}/chosen_tiles", image, step)
                    if layer.kept is not None and not layer.kept.all():
                        image = kept_queries(clips[0], layer.kept[0])
                        writer.add_image(f"{name}/kept_queries", image, step)

    def flush(self) -> None:
        """Write what is held back: a run that is killed later has its curves until now."""
        with self._surviving_a_full_disk():
            for writer in self._tensorboards():
                writer.flush()

    def _tensorboards(self) -> list[SummaryWriter]:
        loggers = self.logger._loggers if isinstance(self.logger, LoggerContainer) else []
        return [log.writer for log in loggers if isinstance(log, TensorBoardLogger)]

    def close(self) -> None:
        with self._surviving_a_full_disk():
            super().close()

    @contextlib.contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """Training matters more than its curves: without room for them it goes on without."""
        try:
            yield
        except OSError as error:
            logger.error("no TensorBoard from here on: %s", error)
            self.logger = BaseLogger()


def film_strip(clips: Tensor, rows: int = 4, columns: int = 8) -> Tensor:
    """[B, C, T, H, W] in [-1, 1] -> an image [3, rows * H, columns * W] in [0, 1].

    Evenly spaced frames of the first clips; of a latent, three channels, in grey the first one
    where there are no three.
    """
    colours = 3 if clips.shape[1] > 2 else 1
    frames = torch.linspace(0, clips.shape[2] - 1, min(columns, clips.shape[2])).round().int()
    picked = clips[:rows, :colours, frames.to(clips.device)].float().cpu().clamp(-1, 1)
    picked = picked.expand(-1, 3, -1, -1, -1)
    return (picked.permute(1, 0, 3, 2, 4).flatten(3, 4).flatten(1, 2) + 1) / 2


def kept_queries(clip: Tensor, kept: Tensor, heads: int = 4) -> Tensor:
    """The middle frame of a clip [C, T, H, W] in [-1, 1], once for each of the first heads.

    Pixels of dropped queries are dark; `kept` is bool [heads, T, H, W], of tokens. Of a latent,
    three channels. Returns an image [3, H, heads * W] in [0, 1].
    """
    middle = clip.shape[1] // 2
    frame = film_strip(clip[None, :, middle : middle + 1])
    lit = kept_pixels(kept[:heads], (clip.shape[1], clip.shape[2], clip.shape[3]))[:, middle]
    return torch.where(lit[:, None], frame, DARK * frame).permute(1, 2, 0, 3).flatten(2)


def chosen_tiles(clip: Tensor, chosen: Tensor, heads: int = 4) -> Tensor:
    """Frames of a clip [C, T, H, W] in [-1, 1], a row for each of the first heads.

    Pixels outside the chosen tiles are dark, those of the tile that chose them are green; `chosen`
    as of `LayerStats`, of one clip. Of a latent, three channels. Returns an image
    [3, heads * H, frames * W] in [0, 1].
    """
    heads = min(heads, len(chosen))
    of_pixels = kept_pixels(chosen[:heads], (clip.shape[1], clip.shape[2], clip.shape[3]))
    frames, lit, own = (
        film_strip(x.expand(heads, -1, -1, -1, -1) if x is clip else 2 * x.unsqueeze(1) - 1)
        for x in (clip, (of_pixels == 1).float(), (of_pixels == 2).float())
    )
    green = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
    shown = torch.where(lit > 0, frames, DARK * frames)
    return torch.where(own > 0, (frames + green) / 2, shown)


def reset_peak_memory(device: torch.device) -> None:
    """Measure from here; memory that the allocator holds unused is given back first."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(PermissionError):  # some sandboxes: the peak is then the process's own
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to what is resident now


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since `reset_peak_memory`."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
