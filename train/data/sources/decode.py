"""Frames of a video file at one size and one rate, by PyAV."""

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from train.data.order.shots import BREAK, frame_change
from train.data.sources.pictures import UnreadableVideo, deinterlaced, fit, shown_size
from train.data.sources.times import with_ends

DECODING = 2  # part of the key of all that is kept of frames: another number where they change

COVER = Disposition.attached_pic | Disposition.timed_thumbnails

NO_VIDEOS = {  # how files begin that are found in the place of videos
    b"version https://git-lfs": "it is a pointer of Git LFS: run `git lfs pull`",
    b"/annex/objects/": "it is a pointer of git-annex: run `git annex get`",
    b"\0\5\x16\7": "it has what macOS notes of another file (AppleDouble), and no video",
    b"<!DOCTYPE": "it is a web page",
    b"<html": "it is a web page",
}


def decode_frames(path: Path, height: int, width: int, fps: float) -> Iterator[np.ndarray]:
    """Yields frames [height, width, 3] uint8 RGB, `fps` of them for each second of video.

    The frame shown at time k / fps is the latest one that has begun by then, so a slower video
    repeats frames and a faster one drops some; `fps=0` takes every frame as it is. Times that jump
    are not filled with copies (`times.with_ends`). A frame is made as it is meant to be seen:
    deinterlaced, turned upright, its pixels square, on black where it is transparent. It is scaled
    to cover the size, and cropped at its centre.

    Of several video streams the one marked as default is taken, of those the largest; never a
    cover, and one picture only where there is no film. Raises UnreadableVideo.
    """
    for image, _ in decode_changes(path, height, width, fps):
        yield image


def decode_changes(
    path: Path, height: int, width: int, fps: float
) -> Iterator[tuple[np.ndarray, float]]:
    """The same frames, each with its `frame_change` from the one before it: BREAK where the film
    has a break between them (`times.with_ends`), 0 for the first."""
    previous = None
    for image, broken in _decode(path, height, width, fps):
        change = 0.0 if previous is None else frame_change(previous, image)
        yield image, BREAK if broken and previous is not None else change
        previous = image


def _decode(path: Path, height: int, width: int, fps: float) -> Iterator[tuple[np.ndarray, bool]]:
    """The same frames, each with whether the film has a break before it."""
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        spacing = 1 / float(stream.guessed_rate or stream.average_rate or 25)
        shown, end, broken = 0, 0.0, False
        try:
            for frame, end, breaks in deinterlaced(with_ends(_frames(container, stream), spacing)):
                broken |= breaks
                times = max(0, math.ceil(end * fps - 1e-6) - shown) if fps else 1
                if times:
                    image = fit(frame, _ratio(stream), height, width)
                    yield image, broken
                    yield from itertools.repeat((image, False), times - 1)
                    broken, shown = False, shown + times
        except av.error.FFmpegError as e:
            if not end:
                raise
            raise UnreadableVideo(f"it is damaged {end:.1f} s after it begins: {e.strerror}") from e
        if not shown:
            raise UnreadableVideo("it has no frame that is whole")


def video_size(path: Path) -> tuple[int, int]:
    """(height, width) of the first frame as it is shown. Raises UnreadableVideo."""
    with _opened(path) as (container, stream):
        for frame, *_ in with_ends(_frames(container, stream), 0):
            return shown_size(frame, _ratio(stream))
        raise UnreadableVideo("it has no frame that is whole")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and the stream that is the film; what goes wrong within is UnreadableVideo."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            yield container, _film(container)
    except (av.error.FFmpegError, OSError) as e:
        raise UnreadableVideo(_no_video(path) or e.strerror or str(e)) from e
    except UnicodeDecodeError as e:
        raise UnreadableVideo(f"its header holds text that is not UTF-8: {e}") from e


def _film(container: InputContainer) -> VideoStream:
    streams = container.streams.video
    if not streams:
        raise UnreadableVideo("it has no video stream")
    films = [s for s in streams if not s.disposition & COVER]
    if not films:
        raise UnreadableVideo("its only pictures are covers or thumbnails")

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        pixels = stream.width * stream.height if stream.codec_context else 0
        default = bool(stream.disposition & Disposition.default)
        return not _one_picture(stream), default, pixels

    film = max(films, key=rank)
    if film.codec_context is None:
        raise UnreadableVideo(f"PyAV has no decoder for its stream {film.index}, the film")
    return film


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Of VP8 and VP9 with alpha by libvpx: FFmpeg's own decoders of these leave it out."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        for frame in decoder.decode(packet if packet.size else None):
            frame.time_base = stream.time_base
            yield frame


def _one_picture(stream: VideoStream) -> bool:
    """As the container counts them, or in Matroska, which does not, by how long they last."""
    lasts = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if stream.frames or not lasts:
        return stream.frames == 1
    hours, minutes, seconds = map(float, lasts.groups())
    return (3600 * hours + 60 * minutes + seconds) * float(stream.average_rate or 25) < 1.5


def _ratio(stream: VideoStream) -> float:
    """Width of the film's pixels to their height, of the frame just decoded.

    As the container has it, else the codec; whoever leaves both out means square ones.
    """
    return float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)


def _no_video(path: Path) -> str | None:
    """What is in the place of a video, where the file's own bytes tell."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(32)
        found = [what for begin, what in NO_VIDEOS.items() if start.startswith(begin)]
        if start[4:8] in (b"ftyp", b"wide", b"mdat", b"free") and b"moov" not in _boxes(file):
            found.append("it was cut off before the index of its frames (moov)")
        return found[0] if found else None if start else "it is empty"


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The kinds of the parts that an MP4 or MOV is made of."""
    at, end = 0, file.seek(0, os.SEEK_END)
    while at < end:
        file.seek(at)
        head = file.read(16)
        yield head[4:8]
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # it is in 64 bits behind the kind
            size = int.from_bytes(head[8:], "big")
        at += size if size >= 8 else end
