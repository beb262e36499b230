"""A folder of videos as a sequence of clips, decoded once and cut at its shots."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch

from train.data.batch import Sample
from train.data.order.alike import check_alike
from train.data.order.buckets import Size, best_length, best_shape, check_sizes
from train.data.order.damaged import reading
from train.data.order.shots import Split, breaks_in, find_shots, windows_of_shot
from train.data.progress import WorkProgress
from train.data.sources.cache import CachedVideo, cached_video, default_cache_dir, file_identity
from train.data.sources.decode import UnreadableVideo, video_size
from train.data.sources.folder import list_videos, split_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A window of a video, all of one shot, from frame `start` on."""

    video: CachedVideo
    start: int
    num_frames: int
    caption: str

    @property
    def size(self) -> Size:
        return self.num_frames, self.video.height, self.video.width


class VideoFolder:
    """The clips of one split of a folder of videos (layouts: see `list_videos`).

    A clip is `dict(video=uint8 [3, num_frames, height, width], caption=str)` at `fps` frames for
    each second (0: as filmed). No clip crosses a cut, or a break (`with_ends`), which the log
    names. Clips of a shot begin `stride` frames apart (0: half a clip). The split "validation" is
    the tail of each shot, about `holdout` of it, "train" the rest, and they share no frame (see
    `windows_of_shot`). The tails are other moments of the same scenes: a validation loss here says
    nothing about scenes never seen. A folder with a subfolder for each split, `train` and
    `validation`, is split so, and `holdout` is not used.

    With `buckets`, sizes in place of that one, a video has the height and width of the one that
    crops it least, and each shot the most frames that one of these sizes has and the shot can give;
    `self.buckets` are the clips of each size.

    Decoded frames are kept in `cache_dir` ("": ~/.cache/flexsparse/frames). A file that cannot be
    read or is too short for a clip is left out: `skipped` has it with the reason, and the log names
    and counts them. Raises ValueError when the split has no clip, and on all ranks when they have
    not the same: under torch.distributed a collective.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        buckets: Sequence[Size] = (),
        fps: float = 0,
        split: Split = "train",
        stride: int = 0,
        holdout: float = 0.1,
        cache_dir: str | Path = "",
    ) -> None:
        self.sizes: list[Size] = [(t, h, w) for t, h, w in buckets or [(num_frames, height, width)]]
        check_sizes(self.sizes)
        if fps < 0 or stride < 0 or not 0 <= holdout < 1:
            raise ValueError(
                f"fps={fps} and stride={stride} must not be negative, and holdout={holdout} "
                "in [0, 1)"
            )
        self.skipped: list[tuple[Path, str]] = []
        self.clips: list[Clip] = []
        cache = Path(cache_dir) if cache_dir else default_cache_dir() / "frames"
        own, part = split_folder(Path(path), split), split
        if own:
            holdout, part = 0.0, "train"
        listed, longest = list_videos(own or Path(path)), 0
        for file, caption, video in self._decode(listed, cache, fps):
            shots = find_shots(video.changes)
            most = max(stop - start for start, stop in shots)
            least = best_length(self.sizes, (video.height, video.width), 0)
            breaks = breaks_in(video.changes)
            if most < least:
                reason = f"its longest shot has {most} frames at fps={fps}, a clip takes {least}"
                self.skipped.append((file, f"{reason}; {breaks}" if breaks else reason))
            elif breaks and split == "train":
                logger.warning("%s: %s", file, breaks)
            longest = max(longest, most)
            for shot in shots:
                t = best_length(self.sizes, (video.height, video.width), shot[1] - shot[0])
                starts = windows_of_shot(shot, t, stride or math.ceil(t / 2), holdout, part)
                self.clips += [Clip(video, start, t, caption) for start in starts]
        self.buckets = [
            [i for i, clip in enumerate(self.clips) if clip.size == size] for size in self.sizes
        ]
        self._report(path, split, len(listed))
        left_out = {file for file, _ in self.skipped}
        names = [(os.path.relpath(file, path), file in left_out) for file, _ in listed]
        held = [(clip.size, clip.start, clip.caption) for clip in self.clips]
        check_alike(path, (names, held), self._said(split))
        if not self.clips:
            frames = min(t for t, _, _ in self.sizes)
            due = frames if part == "train" else 2 * frames
            raise ValueError(
                f"{path} has no {split} clip: {len(self.skipped)} of {len(listed)} videos left "
                f"out, the longest shot has {longest} frames at fps={fps}, {due} are due for "
                f"num_frames={frames} and holdout={holdout}: shorten num_frames or raise fps"
            )

    def _decode(
        self, listed: list[tuple[Path, str]], cache: Path, fps: float
    ) -> Iterator[tuple[Path, str, CachedVideo]]:
        """As many at a time as there are cores, in the order of the list."""
        stopped, frames = Event(), Counter()

        def decode(file: Path) -> CachedVideo:
            def on_frame(n: int) -> None:
                if stopped.is_set():
                    raise InterruptedError(f"no longer asked for {file}")
                frames[file] = n

            height, width = self._shape(file)
            size = {"height": height, "width": width, "fps": fps}
            return cached_video(file, cache, **size, on_frame=on_frame)

        with (
            WorkProgress("decoding videos", len(listed)) as progress,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            futures = [pool.submit(decode, file) for file, _ in listed]
            try:
                for i, ((file, caption), future) in enumerate(zip(listed, futures)):
                    while not future.done():
                        wait([future], timeout=1)
                        progress.show(i, f"{frames[file]} frames of {file.name}")
                    try:
                        yield file, caption, future.result()
                    except UnreadableVideo as e:
                        self.skipped.append((file, str(e)))
            finally:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _shape(self, file: Path) -> tuple[int, int]:
        """Height and width of a video's clips."""
        if len({(h, w) for _, h, w in self.sizes}) == 1:
            return self.sizes[0][1:]
        file_identity(file)  # what is no regular file may keep its reader waiting for ever
        return best_shape(self.sizes, *video_size(file))

    def _said(self, split: Split) -> str:
        """What an error tells of this rank's clips: of the others the log says nothing."""
        more = ""
        if self.skipped:
            file, reason = self.skipped[0]
            more = f" ({len(self.skipped)} videos left out, {file.name} first: {reason})"
        return f"{len(self.clips)} {split} clips{more}"

    def _report(self, path: str | Path, split: Split, listed: int) -> None:
        if split == "train":  # the other split leaves out the same files
            for file, reason in self.skipped:
                logger.warning("left out %s: %s", file, reason)
        left_out = len(self.skipped)
        counts = [f"{len(b)} of {t}x{h}x{w}" for b, (t, h, w) in zip(self.buckets, self.sizes)]
        logger.info(
            "%s: %d %s clips (%s) from %d videos, %d videos left out",
            *(path, len(self.clips), split, ", ".join(counts), listed - left_out, left_out),
        )

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """Where clip i comes from."""
        clip = self.clips[index]
        return f"{clip.video.path} from frame {clip.start}"

    def __getitem__(self, index: int) -> Sample:
        """The clip; DamagedClipError where its decoded frames are gone."""
        clip = self.clips[index]
        with reading(clip.video.path, f" from frame {clip.start}", ValueError):
            frames = torch.from_numpy(clip.video.read(clip.start, clip.num_frames))
        return {"video": frames.permute(3, 0, 1, 2).contiguous(), "caption": clip.caption}
