"""What `python -m train.data.cache_latents` can be asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True, frozen=True)
class Options:
    """The defaults are Wan's 480p clips of five seconds."""

    videos: Path
    """Folder of videos; its layout is detected (train/data/sources/folder.py)."""
    vae: Path
    """Folder of a VAE of videos that diffusers saved, as AutoencoderKLWan."""
    out: Path
    """Folder for the parquet files."""
    prompt_embeds: Path | None = None
    """Folder with NAME.safetensors for each video, or one file."""
    text_encoder: Path | None = None
    """In its place: folder of a text encoder that transformers saved, or of a pipeline of
    diffusers'; it encodes the captions. Without either, clips have no text."""
    text_tokens: int = 512
    """At which the text encoder's captions are cut."""
    num_frames: int = 81
    height: int = 480
    width: int = 832
    buckets: tuple[tuple[int, int, int], ...] = ()
    """Several sizes (frames, height, width) in place of that one; each video goes to the one that
    fits it best."""
    fps: float = 16
    """Frames for each second of video; 0 takes them as filmed."""
    stride: int = 0
    """Frames from the start of one clip to that of the next; 0: the clip's length."""
    videos_per_file: int = 16
    processes: int = 1
    """That share the work on this machine, each on a GPU of its own if there are enough."""
