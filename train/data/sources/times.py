"""When each frame of a film begins and ends, also where its file has times missing or wrong."""

from collections.abc import Iterable, Iterator

import av

LONGEST = 10.0  # seconds that a frame may be shown for: times that are further apart jump
BACK = 1.0  # seconds back that are a jump: less is a decoder's guess at the order of its frames


def with_ends(
    frames: Iterable[av.VideoFrame], spacing: float
) -> Iterator[tuple[av.VideoFrame, float, bool]]:
    """Each frame that is whole, when it ends, and whether the film has a break before it.

    A frame ends where the next one begins, in seconds from the beginning of the first; the last one
    after the duration that the file gives it. A frame without a time begins after the duration of
    the one before it. Where there is no duration it is as that of the frames before, at first
    `spacing` seconds.

    A break is where times jump, by more than LONGEST ahead or BACK back (the jump is taken out: the
    film goes on as if the frame had no time), or where damaged frames were left out.
    """
    if not 0 < spacing <= LONGEST:  # an average over a jump
        spacing = 1 / 25
    held, begin, broken, damaged = None, 0.0, False, False
    zero: float | None = None  # the time in the file at which the film begins
    for frame in _without_strays(frames):
        if frame.is_corrupt:
            damaged = True
            continue
        end, jumps = 0.0, False
        if held is not None:
            end = begin + (_duration(held) or spacing)
        if frame.time is not None:
            step = frame.time - (frame.time - end if zero is None else zero) - begin
            jumps = not -BACK <= step <= LONGEST
            if zero is None or jumps:
                zero = frame.time - end
            else:
                end, spacing = begin + max(0.0, step), step if 0 < step <= BACK else spacing
        if held is not None:
            yield held, end, broken
            broken = jumps or damaged
        held, begin, damaged = frame, end, False
    if held is not None:
        yield held, begin + (_duration(held) or spacing), broken


def _without_strays(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The frames, without the time of one that is far ahead of both its neighbours."""
    held, before = None, None
    for frame in frames:
        if held is not None:
            if before is not None and held.time is not None and frame.time is not None:
                if before <= frame.time < held.time - BACK and held.time > before + BACK:
                    held.pts = None
            yield held
            before = before if held.time is None else held.time
        held = frame
    if held is not None:
        yield held


def _duration(frame: av.VideoFrame) -> float:
    """In seconds, as the file has it; 0 where it has none that can be true."""
    seconds = float((frame.duration or 0) * (frame.time_base or 0))
    return seconds if 0 < seconds <= LONGEST else 0.0
