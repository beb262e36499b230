"""python -m train.data.cache_latents --videos DIR --vae DIR --out DIR [--prompt-embeds DIR_OR_FILE]

Encodes a folder of videos once, for `LatentDataLoader` or FastVideo to train on: parquet files of
FastVideo's records (see latent_records.py), one for every few videos. A run that was stopped goes
on with the files that are missing. For several GPUs start it once for each: they share the work.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from train import log
from train.data.cache_folder import MANIFEST, claim_folder, claimed
from train.data.decode import UnreadableVideo, decode_frames
from train.data.encode import check_clip_size, cut_clips, encode_clip, find_clips, load_vae
from train.data.folder import list_videos
from train.data.latent_records import SCHEMA, tensor_columns
from train.data.progress import WorkProgress
from train.data.prompt_embeds import PromptEmbeds


@dataclass(kw_only=True, frozen=True)
class Options:
    """The defaults are Wan's 480p clips of five seconds."""

    videos: Path
    """Folder of videos; its layout is detected (train/data/folder.py)."""
    vae: Path
    """Folder of a VAE with the interface of diffusers' AutoencoderKLWan."""
    out: Path
    """Folder for the parquet files."""
    prompt_embeds: Path | None = None
    """Folder with NAME.safetensors for each video, or one file; without: clips have no text."""
    num_frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16
    """Frames for each second of video; 0 takes them as filmed."""
    stride: int = 0
    """Frames from the start of one clip to that of the next; 0: the clip's length."""
    videos_per_file: int = 16


class LatentCache:
    """What `options` ask for, checked, with nothing encoded yet; `run` encodes.

    A latent is the mode of the VAE's posterior, in fp32 and not normalised, as FastVideo's are.

    Raises ValueError or OSError in one line for whatever is wrong: no videos, a size that the VAE
    and patches do not divide, embeddings that are missing, a folder that holds another run or takes
    no files; `run` does so if no video has a clip.
    """

    def __init__(self, options: Options) -> None:
        o = self.options = options
        if o.fps < 0 or o.stride < 0 or o.videos_per_file < 1:
            raise ValueError(
                f"fps={o.fps} and stride={o.stride} must not be negative, and "
                f"videos_per_file={o.videos_per_file} must be positive"
            )
        self.videos = list_videos(o.videos)
        self.names = [Path(os.path.relpath(file, o.videos)).as_posix() for file, _ in self.videos]
        captions = [caption for _, caption in self.videos]
        self.texts = PromptEmbeds(
            o.prompt_embeds, [(_stem(n), c) for n, c in zip(self.names, captions, strict=True)]
        )
        self.vae = load_vae(o.vae)
        check_clip_size(self.vae, o.num_frames, o.height, o.width)
        claim_folder(o.out, self._manifest())
        count = -(-len(self.videos) // o.videos_per_file)
        self.files = [o.out / f"latents-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
        self.skipped: list[str] = []

    def _manifest(self) -> dict[str, Any]:
        o, each = self.options, ("num_frames", "height", "width", "fps", "stride")
        sizes = [file.stat().st_size if file.is_file() else None for file, _ in self.videos]
        captions = [caption for _, caption in self.videos]
        return {
            **{name: getattr(o, name) for name in (*each, "videos_per_file")},
            "videos": _digest(repr([self.names, captions, sizes]).encode()),
            "prompt_embeds": o.prompt_embeds is not None,
            "vae": _digest(*(f.read_bytes() for f in sorted(o.vae.iterdir()) if f.is_file())),
            "latents_mean": list(self.vae.config.latents_mean),
            "latents_std": list(self.vae.config.latents_std),
        }

    def run(self) -> int:
        """Encode what is missing; the number of clips in all files that are there in the end."""
        each, of = self.options.videos_per_file, len(self.videos)
        with WorkProgress("encoding videos", of) as progress:
            for i, file in enumerate(self.files):
                with claimed(file) as unfinished:
                    if unfinished is None:
                        continue
                    options = {"compression": "zstd", "use_dictionary": False}
                    with pq.ParquetWriter(unfinished, SCHEMA, **options) as writer:
                        for video in range(i * each, min((i + 1) * each, of)):
                            progress.show(video, self.names[video])
                            for record in self._records(video):
                                # a call is a row group: one clip, so that readers can pick
                                writer.write_table(pa.Table.from_pylist([record], SCHEMA))
        there = [pq.read_metadata(file).num_rows for file in self.files if file.exists()]
        log.logger.info(
            "%s: %d clips, %d of %d files, videos left out: %d; to normalise: %s",
            *(self.options.out, sum(there), len(there), len(self.files), len(self.skipped)),
            MANIFEST,
        )
        if len(there) == len(self.files) and not sum(there):
            raise ValueError(
                f"{self.options.videos} has no clip: no shot of its {of} videos has num_frames="
                f"{self.options.num_frames} frames at fps={self.options.fps:g}: ask for fewer, or "
                "raise fps, with another --out"
            )
        return sum(there)

    def _records(self, video: int) -> Iterator[dict[str, Any]]:
        """Those of a video's clips; none, and a line, if it cannot be read or is too short."""
        o, (file, caption), name = self.options, self.videos[video], self.names[video]
        size = {"height": o.height, "width": o.width, "fps": o.fps}
        reason = f"it has no shot of {o.num_frames} frames at fps={o.fps}"
        try:
            starts = find_clips(file, o.num_frames, o.stride or o.num_frames, **size)
        except UnreadableVideo as e:
            starts, reason = [], str(e)
        if not starts:
            self.skipped.append(name)
            log.logger.warning("left out %s: %s", name, reason)
            return
        text = tensor_columns("text_embedding", self.texts[video])
        for start, frames in cut_clips(decode_frames(file, **size), starts, o.num_frames):
            latent = encode_clip(self.vae, frames)
            yield {
                "id": f"{_stem(name)}-{start:06d}",
                **tensor_columns("vae_latent", latent),
                **text,
                "file_name": name,
                "caption": caption,
                "media_type": "video",
                "width": o.width,
                "height": o.height,
                "num_frames": latent.shape[1],  # of the latent, as FastVideo has it
                "duration_sec": o.num_frames / o.fps if o.fps else None,
                "fps": o.fps or None,
            }


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _digest(*data: bytes) -> str:
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()[:32]


def main(argv: Sequence[str]) -> int:
    """0 when all is encoded, 1 for an error, 130 for Ctrl-C."""
    log.to_console()
    options = tyro.cli(Options, prog="python -m train.data.cache_latents", args=argv)
    try:
        LatentCache(options).run()
    except (ValueError, OSError) as error:
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted: files that are complete stay; start again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
