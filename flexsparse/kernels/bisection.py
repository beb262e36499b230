"""The k-th largest score of a row, by bisection on integers that sort as scores do."""

# Triton types its reductions as tuples.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def between(low, high):
    """The mean of two int32, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def sort_key(score):
    """int32 that sorts as the score does; -0.0 is 0.0, NaN the largest."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(score == score, bits, 0x7FFFFFFF)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def kth_largest(key, low, high, want):
    """The largest number, from low to high, that at least ``want`` keys of the row reach."""
    while tl.max((low < high).to(tl.int32), 0) > 0:
        middle = between(low, high)
        count = tl.sum((key >= middle[:, None]).to(tl.int32), 1)
        low = tl.where(count >= want, middle, low)
        high = tl.where(count > want, high, tl.where(count == want, middle, middle - 1))
    return low
