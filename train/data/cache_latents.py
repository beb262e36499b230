"""python -m train.data.cache_latents --videos DIR --vae DIR --text-encoder DIR --out DIR

Encodes a folder of videos and their captions once, for `LatentDataLoader` or FastVideo to train on:
parquet files of FastVideo's records (latents/records.py), one for every few videos. A run that
was stopped goes on with the files that are missing. `--processes 8` shares the work among the GPUs
of a machine; on several machines start it once on each, or under torchrun: a file is claimed by who
writes it.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from train import log
from train.data.caches.encode import (
    check_clip_size,
    cut_clips,
    encode_clip,
    find_clips,
    load_vae,
    normalisation,
)
from train.data.caches.folder import MANIFEST, claim_folder, claimed
from train.data.caches.options import Options
from train.data.caches.processes import beside, device_of, shared_cores
from train.data.caches.prompt_embeds import PromptEmbeds
from train.data.caches.text_encoder import CaptionEmbeds, fingerprint
from train.data.latents.records import SCHEMA, tensor_columns
from train.data.order.buckets import check_sizes
from train.data.progress import WorkProgress
from train.data.sources.decode import DECODING, UnreadableVideo, decode_frames
from train.data.sources.folder import list_videos


class LatentCache:
    """What `options` ask for, checked, with nothing encoded yet; `run` encodes.

    A latent is the mode of the VAE's posterior, in fp32 and not normalised, as FastVideo's are.

    Raises ValueError or OSError in one line for whatever is wrong: no videos, a size that the VAE
    and patches do not divide, embeddings that are missing, a folder that holds another run or takes
    no files; `run` does so if no video has a clip. `worker` is the number of this process.
    """

    def __init__(self, options: Options, worker: int = 0) -> None:
        o = self.options = options
        if o.fps < 0 or o.stride < 0 or min(o.videos_per_file, o.processes) < 1:
            raise ValueError(
                f"fps={o.fps} and stride={o.stride} must not be negative, and videos_per_file="
                f"{o.videos_per_file} and processes={o.processes} must be positive"
            )
        self.sizes = list(o.buckets) or [(o.num_frames, o.height, o.width)]
        check_sizes(self.sizes)
        device = device_of(worker)
        self.videos = list_videos(o.videos)
        self.names = [Path(os.path.relpath(file, o.videos)).as_posix() for file, _ in self.videos]
        captions = [caption for _, caption in self.videos]
        if o.text_encoder and o.prompt_embeds:
            raise ValueError("give --text-encoder or --prompt-embeds, not both")
        pairs = [(_stem(n), c) for n, c in zip(self.names, captions, strict=True)]
        self.texts = PromptEmbeds(o.prompt_embeds, pairs)
        self.vae = load_vae(o.vae, device)
        for size in self.sizes:
            check_clip_size(self.vae, *size)
        if o.text_encoder:
            tokens = o.text_tokens
            self.texts = CaptionEmbeds(o.text_encoder, captions, tokens=tokens, device=device)
        claim_folder(o.out, self._manifest())
        count = -(-len(self.videos) // o.videos_per_file)
        self.files = [o.out / f"latents-{i:05d}-of-{count:05d}.parquet" for i in range(count)]

    def _manifest(self) -> dict[str, Any]:
        o, each = self.options, ("num_frames", "height", "width", "fps", "stride")
        sizes = [file.stat().st_size if file.is_file() else None for file, _ in self.videos]
        captions = [caption for _, caption in self.videos]
        more: dict[str, Any] = {"buckets": [list(b) for b in o.buckets]} if o.buckets else {}
        if o.text_encoder:
            more |= {"text_encoder": fingerprint(o.text_encoder), "text_tokens": o.text_tokens}
        mean, std = normalisation(self.vae)
        return {
            **{name: getattr(o, name) for name in (*each, "videos_per_file")},
            **more,
            "decoding": DECODING,
            "videos": _digest(repr([self.names, captions, sizes]).encode()),
            "prompt_embeds": o.prompt_embeds is not None,
            "vae": _digest(*(f.read_bytes() for f in sorted(o.vae.iterdir()) if f.is_file())),
            "latents_mean": mean,
            "latents_std": std,
        }

    def run(self) -> int:
        """Encode what is missing; the number of clips in all files that are there in the end."""
        others, of = self.options.processes - 1, len(self.videos)
        with shared_cores(others + 1), beside(others, _encode, self.options):
            self.encode()
        there = [i for i, file in enumerate(self.files) if file.exists()]
        rows = [pq.read_table(self.files[i], columns=["file_name"])["file_name"] for i in there]
        clips = sum(map(len, rows))
        given = sum(len(self._videos_of(i)) for i in there)
        log.logger.info(
            "%s: %d clips, %d of %d files, videos left out: %d; to normalise: %s",
            *(self.options.out, clips, len(there), len(self.files)),
            given - sum(len(names.unique()) for names in rows),
            MANIFEST,
        )
        if len(there) == len(self.files) and not clips:
            least = min(t for t, _, _ in self.sizes)
            raise ValueError(
                f"{self.options.videos} has no clip: no shot of its {of} videos has num_frames="
                f"{least} frames at fps={self.options.fps:g}: ask for fewer, or raise fps, with "
                "another --out"
            )
        return clips

    def encode(self) -> None:
        """Write the files that are neither there nor another process's."""
        with WorkProgress("encoding videos", len(self.videos)) as progress:
            for i, file in enumerate(self.files):
                with claimed(file) as unfinished:
                    if unfinished is None:
                        continue
                    options = {"compression": "zstd", "use_dictionary": False}
                    with pq.ParquetWriter(unfinished, SCHEMA, **options) as writer:
                        for video in self._videos_of(i):
                            progress.show(video, self.names[video])
                            for record in self._records(video):
                                # a call is a row group: one clip, so that readers can pick
                                writer.write_table(pa.Table.from_pylist([record], SCHEMA))

    def _videos_of(self, file: int) -> range:
        each = self.options.videos_per_file
        return range(file * each, min((file + 1) * each, len(self.videos)))

    def _records(self, video: int) -> Iterator[dict[str, Any]]:
        """Those of a video's clips; none, and a line, if it cannot be read or is too short."""
        o, (file, caption), name = self.options, self.videos[video], self.names[video]
        least = min(t for t, _, _ in self.sizes)
        reason = f"it has no shot of {least} frames at fps={o.fps}"
        (height, width), clips = (0, 0), []
        try:
            (height, width), clips = find_clips(file, self.sizes, o.stride, o.fps)
        except UnreadableVideo as e:
            reason = str(e)
        if not clips:
            log.logger.warning("left out %s: %s", name, reason)
            return
        text = tensor_columns("text_embedding", self.texts[video])
        decoded = decode_frames(file, height, width, o.fps)
        for start, frames in cut_clips(decoded, clips):
            latent = encode_clip(self.vae, frames)
            yield {
                "id": f"{_stem(name)}-{start:06d}",
                **tensor_columns("vae_latent", latent),
                **text,
                "file_name": name,
                "caption": caption,
                "media_type": "video",
                "width": width,
                "height": height,
                "num_frames": latent.shape[1],  # of the latent, as FastVideo has it
                "duration_sec": frames.shape[1] / o.fps if o.fps else None,
                "fps": o.fps or None,
            }


def _encode(worker: int, options: Options) -> None:
    """What a further process does."""
    log.to_console()
    log.logger.setLevel(logging.WARNING)
    try:
        with shared_cores(options.processes):
            LatentCache(options, worker).encode()
    except (ValueError, OSError) as error:
        log.logger.error("error: %s", error)
        sys.exit(1)
    except KeyboardInterrupt:  # the first process says so
        sys.exit(130)


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
    except (ValueError, OSError, RuntimeError) as error:
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted: files that are complete stay; start again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
