import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import MovingDigits
from train.data.sources.digits import COLOURS, NAMES, glyph

indices = st.integers(0, 10**6)


@settings(max_examples=25, deadline=None)
@given(indices, indices)
def test_a_clip_is_a_function_of_its_index(a, b):
    one, other = MovingDigits(2 * 10**6), MovingDigits(2 * 10**6)
    other[b]
    assert torch.equal(one[a]["video"], other[a]["video"])
    assert one[a]["caption"] == other[a]["caption"]
    assert torch.equal(MovingDigits(1, first=a)[0]["video"], one[a]["video"])


@settings(max_examples=25, deadline=None)
@given(indices, st.integers(32, 80), st.integers(32, 80))
def test_the_caption_says_what_moves(index, height, width):
    """The upper digit, read off the first two frames, is its glyph and sets off as said."""
    clip = MovingDigits(1, first=index, num_frames=17, height=height, width=width)[0]
    video = clip["video"]
    assert video.shape == (3, 17, height, width) and video.dtype == torch.uint8
    said = re.findall(r"a (\w+) (\w+) moves (\w+) and (\w+)", clip["caption"])
    assert len(said) == 2
    colour, name, vertical, horizontal = said[1]  # drawn last, so nothing covers it
    corners = []
    for t in (0, 1):
        hit = (video[:, t] == torch.tensor(COLOURS[colour])[:, None, None]).all(0)
        ys, xs = hit.nonzero(as_tuple=True)
        assert torch.equal(
            hit[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1],
            trimmed(torch.from_numpy(glyph(NAMES.index(name)))),
        )
        corners.append((int(ys.min()), int(xs.min())))
    assert (corners[1][0] > corners[0][0]) == (vertical == "down")
    assert (corners[1][1] > corners[0][1]) == (horizontal == "right")


def trimmed(shape):
    ys, xs = shape.nonzero(as_tuple=True)
    return shape[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def test_glyphs_differ():
    assert len({glyph(d).tobytes() for d in range(10)}) == 10


def test_bad_indices_and_sizes_are_refused():
    with pytest.raises(IndexError, match="clip 3 of 3"):
        MovingDigits(3)[3]
    with pytest.raises(ValueError, match="32x32.*height=20"):
        MovingDigits(height=20)
