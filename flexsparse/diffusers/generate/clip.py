"""From what a pipeline gives to a file: an MP4, or a latent."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexsparse.diffusers.generate.files import write_tensors, write_whole


def frames_of(given: Any) -> Tensor:
    """A pipeline's frames in [0, 1], ``[1, frames, height, width, 3]``, NumPy's or torch's, as
    uint8 ``[frames, height, width, 3]``.

    Raises:
        ValueError: pixels that are not finite, which would be black.
    """
    frames = torch.as_tensor(given)[0].float()
    if not frames.isfinite().all():
        raise ValueError("the VAE's pixels are not finite: give --vae-dtype float32")
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def write_mp4(path: Path, frames: Tensor, fps: int) -> Path:
    """H.264 of uint8 frames ``[frames, height, width, 3]``; the file appears when it is whole."""
    import av

    def write(draft: Path) -> None:
        with av.open(str(draft), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in frames.numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())

    return write_whole(path, write)


def write_latent(path: Path, latent: Tensor) -> Path:
    """The tensor `latent`.

    Raises:
        OSError: no room at `path`; the message names a file in the folder for temporary ones.
    """
    tensors = {"latent": latent}
    try:
        return write_tensors(path, tensors)
    except OSError as e:
        spare = write_tensors(Path(tempfile.gettempdir(), path.name), tensors)
        raise OSError(f"{path} was not written ({line(e)}); the latent is in {spare}") from e


def line(e: BaseException) -> str:
    return str(e).splitlines()[0] if str(e).strip() else type(e).__name__
