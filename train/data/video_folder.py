"""A folder of videos as a sequence of clips, decoded once and cut at its shots."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from train.data.batch import Sample
from train.data.cache import CachedVideo, cached_video, default_cache_dir
from train.data.decode import UnreadableVideo
from train.data.folder import list_videos
from train.data.progress import WorkProgress
from train.data.shots import Split, find_shots, windows_of_shot

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A window of a video, all of one shot, from frame `start` on."""

    video: CachedVideo
    start: int
    caption: str


class VideoFolder:
    """The clips of one split of a folder of videos (layouts: see `list_videos`).

    A clip is `dict(video=uint8 [3, num_frames, height, width], caption=str)` at `fps` frames for
    each second (0: as filmed). No clip crosses a cut. Clips of a shot begin `stride` frames apart
    (0: half a clip). The split "validation" is the tail of each shot, about `holdout` of it,
    "train" the rest, and they share no frame (see `windows_of_shot`). The tails are other moments
    of the same scenes: a validation loss here says nothing about scenes never seen.

    Decoded frames are kept in `cache_dir` ("": ~/.cache/flexsparse/frames). A file that cannot be
    read or is too short for a clip is left out: `skipped` has it with the reason, and the log names
    and counts them. Raises ValueError when the split has no clip.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        fps: float = 0,
        split: Split = "train",
        stride: int = 0,
        holdout: float = 0.1,
        cache_dir: str | Path = "",
    ) -> None:
        if min(num_frames, height, width) < 1 or fps < 0 or stride < 0 or not 0 <= holdout < 1:
            raise ValueError(
                f"num_frames={num_frames}, height={height} and width={width} must be positive, "
                f"fps={fps} and stride={stride} not negative, and holdout={holdout} in [0, 1)"
            )
        self.num_frames = num_frames
        self.skipped: list[tuple[Path, str]] = []
        self.clips: list[Clip] = []
        cache = Path(cache_dir) if cache_dir else default_cache_dir() / "frames"
        listed = list_videos(Path(path))
        size = {"height": height, "width": width, "fps": fps}
        stride, longest = stride or math.ceil(num_frames / 2), 0
        for file, caption, video in self._decode(listed, cache, size):
            shots = find_shots(video.changes)
            most = max(stop - start for start, stop in shots)
            if most < num_frames:
                reason = (
                    f"its longest shot has {most} frames at fps={fps}, a clip takes {num_frames}"
                )
                self.skipped.append((file, reason))
            longest = max(longest, most)
            for shot in shots:
                starts = windows_of_shot(shot, num_frames, stride, holdout, split)
                self.clips += [Clip(video, start, caption) for start in starts]
        self._report(path, split, len(listed))
        if not self.clips:
            due = num_frames if split == "train" else 2 * num_frames
            raise ValueError(
                f"{path} has no {split} clip: {len(self.skipped)} of {len(listed)} videos left "
                f"out, the longest shot has {longest} frames at fps={fps}, {due} are due for "
                f"num_frames={num_frames} and holdout={holdout}: shorten num_frames or raise fps"
            )

    def _decode(
        self, listed: list[tuple[Path, str]], cache: Path, size: dict
    ) -> Iterator[tuple[Path, str, CachedVideo]]:
        with WorkProgress("decoding videos", len(listed)) as progress:
            for i, (file, caption) in enumerate(listed):

                def on_frame(n: int, done: int = i, name: str = file.name) -> None:
                    progress.show(done, f"{n} frames of {name}")

                try:
                    yield file, caption, cached_video(file, cache, **size, on_frame=on_frame)
                except UnreadableVideo as e:
                    self.skipped.append((file, str(e)))

    def _report(self, path: str | Path, split: Split, listed: int) -> None:
        if split == "train":  # the other split leaves out the same files
            for file, reason in self.skipped:
                logger.warning("left out %s: %s", file, reason)
        left_out = len(self.skipped)
        logger.info(
            "%s: %d %s clips of %d frames from %d videos, %d videos left out",
            *(path, len(self.clips), split, self.num_frames, listed - left_out, left_out),
        )

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """Where clip i comes from."""
        clip = self.clips[index]
        return f"{clip.video.path} from frame {clip.start}"

    def __getitem__(self, index: int) -> Sample:
        clip = self.clips[index]
        frames = torch.from_numpy(clip.video.read(clip.start, self.num_frames))
        return {"video": frames.permute(3, 0, 1, 2).contiguous(), "caption": clip.caption}
