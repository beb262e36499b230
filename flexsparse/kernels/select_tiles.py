"""Which key tiles each block of query tiles attends to, from pooled queries and keys: a bit each.

    q[i] = mean of the pooled queries of block i, weighted by their number of tokens
    score[i, j] = q[i] . k[j] / sqrt(D)
    chosen[i] = the want[i] best j by (score, lower index first); NaN is the best score
    want[i] = amount                                                        top
              #(score[i] >= mean(score[i]) + amount * std(score[i]))        threshold
              the fewest whose weights exp(score - max) reach amount of all    mass
    kept within least and most

Scores are products on tensor cores in three parts of tf32, which order as fp32 does: a query is
split once, a key, whose scores are a row of a product, once for 16 queries. So many does a program
have at a time, whose scores go through scratch of its own: it stays in cache, however many tiles
there are. The want-th best score is found by bisection on integers that sort as floats do, in at
most 32 counts of a row; sums that decide are of integers or in fp64, so no order of adding shows.
"""

# Triton types its reductions as tuples.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.kernels.bisection import between, kth_largest, sort_key
from flexsparse.kernels.launch import is_hopper, stages

_BLOCK_M = 16  # queries of a program, the fewest columns that Triton's products take
_VALUES = {
    "top": 8192,
    "threshold": 4096,
    "mass": 4096,
}  # scores in registers: with more they spill


@triton.jit
def _want_threshold(score, valid, n, amount):
    """How many scores of a row reach its threshold."""
    wide = tl.where(valid, score, 0.0).to(tl.float64)
    mean = tl.sum(wide, 1) / n
    apart = tl.where(valid, wide - mean[:, None], 0.0)
    least = mean + tl.sqrt(tl.sum(apart * apart, 1) / n) * amount
    reach = tl.sum(((wide >= least[:, None]) & valid).to(tl.int32), 1)
    return tl.where(amount == float("-inf"), n, reach)


@triton.jit
def _want_mass(score, key, valid, amount):
    """How many of a row's best scores hold the share ``amount`` of its weights."""
    top = tl.max(tl.where(valid & (score == score), score, float("-inf")), 1)[:, None]
    weight = tl.where(score < top, tl.exp(score - top), 1.0)
    weight = tl.where(valid, weight * 1073741824.0, 0.0).to(tl.int64)
    goal = tl.ceil(tl.sum(weight, 1).to(tl.float64) * amount).to(tl.int64)
    low = tl.min(tl.where(valid, key, 0x7FFFFFFF), 1)
    high = tl.max(key, 1)
    while tl.max((low < high).to(tl.int32), 0) > 0:
        middle = between(low, high)
        reached = tl.sum(tl.where(key >= middle[:, None], weight, 0), 1) >= goal
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    above = key > low[:, None]
    last = tl.max(tl.where(key == low[:, None], weight, 0), 1)
    missing = goal - tl.sum(tl.where(above, weight, 0), 1)
    more = (missing + last - 1) // tl.maximum(last, 1)
    return tl.sum(above.to(tl.int32), 1) + more.to(tl.int32)


@triton.jit
def _choose(key, valid, want, i_s, n):
    """The ``want`` largest keys of each row, of equal ones the first: int32, 0 or 1."""
    low = tl.min(tl.where(valid, key, 0x7FFFFFFF), 1)
    low = kth_largest(key, low, tl.max(key, 1), want)[:, None]
    # Once more where too many equal the lowest: among these the first has the largest key.
    key = tl.where(key > low, 0x7FFFFFFF, tl.where(key == low, n - i_s, 0))
    ties = tl.sum((key > 0).to(tl.int32), 1) > want
    return (key >= kth_largest(key, want * 0 + 1, tl.where(ties, n, 1), want)[:, None]).to(tl.int32)


@triton.jit
def _split(x):
    """x as a sum: x rounded to tf32, and the rest, of which tf32 holds all but a bit. Of NaN the
    first may be any number, the second never is one; of infinities it is the other way round."""
    high = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    high = high.to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def _select(
    q, k, weights, amounts, always, scratch, bits, tasks, H, GROUP, n, blocks, words, D,
    SCALE: tl.constexpr, RULE: tl.constexpr, AMOUNT: tl.constexpr, AT_RUN_TIME: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, QUERY_TILES: tl.constexpr, WEIGHTED: tl.constexpr,
    ALWAYS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    o_r, o_s = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_S)
    o_w = tl.arange(0, BLOCK_S // 32)
    i_s, valid = o_s[None, :], (o_s < n)[None, :]
    width = tl.cdiv(n, BLOCK_N) * BLOCK_N
    p_mean = scratch + tl.program_id(0).to(tl.int64) * BLOCK_M * (2 * BLOCK_D + width)
    p_scratch = p_mean + 2 * BLOCK_M * BLOCK_D
    each = tl.cdiv(blocks, BLOCK_M)
    if AT_RUN_TIME:
        amount = tl.load(amounts)
    else:
        amount = tl.full([], AMOUNT, tl.float64)
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        i_bh, first = (task // each).to(tl.int64), task % each * BLOCK_M
        p_k = k + (i_bh // H * (H // GROUP) + i_bh % H // GROUP) * n * D
        total = tl.zeros([BLOCK_M], dtype=tl.float32)
        for d in tl.static_range(0, BLOCK_D, BLOCK_K):
            b_q = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.float32)
            for j in tl.static_range(QUERY_TILES):
                i_q = (first + o_m) * QUERY_TILES + j
                p_q = q + (i_bh * n + i_q)[:, None] * D + (d + o_k)[None, :]
                m_q = (i_q < n)[:, None] & (d + o_k < D)[None, :]
                weight = tl.where(i_q < n, 1.0, 0.0)
                if WEIGHTED:
                    weight = tl.load(weights + i_q, mask=i_q < n, other=0).to(tl.float32)
                b_q += tl.load(p_q, mask=m_q, other=0.0) * weight[:, None]
                if d == 0:
                    total += weight
            b_q, b_rest = _split(b_q * SCALE)
            p_q = p_mean + o_m[:, None] * BLOCK_D + d + o_k[None, :]
            tl.store(p_q, b_q)
            tl.store(p_q + BLOCK_M * BLOCK_D, b_rest)
        tl.debug_barrier()  # what is in scratch is read by other threads than wrote it
        for start in range(0, n, BLOCK_N):
            i_k = start + o_n
            b_s = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
            b_small = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
            for d in tl.static_range(0, BLOCK_D, BLOCK_K):
                p_high = p_mean + o_m[None, :] * BLOCK_D + (d + o_k)[:, None]
                b_high, b_low = tl.load(p_high), tl.load(p_high + BLOCK_M * BLOCK_D)
                p_block = p_k + i_k[:, None] * D + (d + o_k)[None, :]
                m_k = (i_k < n)[:, None] & (d + o_k < D)[None, :]
                b_k = tl.load(p_block, mask=m_k, other=0.0)
                b_k_high, b_k_low = _split(b_k)
                b_small = tl.dot(b_k_low, b_high, b_small, input_precision="tf32")
                b_small = tl.dot(b_k_high, b_low, b_small, input_precision="tf32")
                b_s = tl.dot(b_k_high, b_high, b_s, input_precision="tf32")
            b_s += tl.where(tl.abs(b_s) == float("inf"), 0.0, b_small)
            if QUERY_TILES > 1:
                b_s = tl.div_rn(b_s, tl.maximum(total, 1.0)[None, :])
            tl.store(p_scratch + o_m[None, :] * width + i_k[:, None], b_s)
        tl.debug_barrier()
        for row in range(0, BLOCK_M, BLOCK_R):
            p_row = p_scratch + (row + o_r)[:, None] * width + o_s[None, :]
            score = tl.load(p_row, mask=valid & (o_r < BLOCK_M)[:, None], other=0.0)
            key = tl.where(valid, sort_key(score), -0x80000000)
            if RULE == "top":
                want = tl.zeros([BLOCK_R], dtype=tl.int32) + tl.ceil(amount).to(tl.int32)
            elif RULE == "threshold":
                want = _want_threshold(score, valid, n, amount)
            else:
                want = _want_mass(score, key, valid, amount)
            chosen = _choose(key, valid, tl.minimum(tl.maximum(want, LEAST), MOST), i_s, n)
            word = tl.reshape(chosen, [BLOCK_R, BLOCK_S // 32, 32]) << tl.arange(0, 32)
            i_row = first + row + o_r
            p_bits = bits + (i_bh * blocks + i_row)[:, None] * words + o_w[None, :]
            m_bits = (i_row < blocks)[:, None] & (o_w < words)[None, :]
            chosen_bits = tl.sum(word, 2)
            if ALWAYS:
                p_always = always + i_row[:, None] * words + o_w[None, :]
                chosen_bits |= tl.load(p_always, mask=m_bits, other=0)
            tl.store(p_bits, chosen_bits, mask=m_bits)
        tl.debug_barrier()  # before the next rows' scores overwrite these


@triton_op("flexsparse::select_tiles", mutates_args={})
def select_tiles(
    q: Tensor, k: Tensor, weights: Tensor | None, rule: str, amount: float,
    amount_tensor: Tensor | None, least: int, most: int, query_tiles: int,
    always: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Bits of the chosen key tiles, see :func:`flexsparse.choice.selection.pack_bits`.

    q ``[B, H, n, D]``, k ``[B, Hkv, n, D]``, pooled, fp32; weights int32 ``[n]``, how many queries
    each tile's mean is of, where ``query_tiles`` > 1 and they differ. rule "top", "threshold" or
    "mass" with its amount, which ``amount_tensor``, fp64 of one number, replaces; always int32
    ``[ceil(n / query_tiles), ceil(n / 32)]``, bits that are set whatever the scores. Returns int32
    ``[B, H, ceil(n / query_tiles), ceil(n / 32)]``. No gradient.
    """
    B, H, n, D = q.shape
    q, k = q.float().contiguous(), k.float().expand(B, -1, -1, -1).contiguous()
    blocks, words = -(-n // query_tiles), -(-n // 32)
    bits = torch.empty((B, H, blocks, words), dtype=torch.int32, device=q.device)
    tasks = B * H * -(-blocks // _BLOCK_M)
    programs = min(tasks, _programs(q.device))
    block_d = max(16, triton.next_power_of_2(D))
    block_s = max(32, triton.next_power_of_2(n))
    values = _VALUES[rule] // (1 if D <= 128 else 2)
    block_n, block_k, num_stages = _blocks(q, block_d)
    scratch = q.new_empty(programs * _BLOCK_M * (2 * block_d + -(-n // block_n) * block_n))
    wrap_triton(_select)[(programs,)](
        q, k, bits if weights is None else weights, q if amount_tensor is None else amount_tensor,
        bits if always is None else always, scratch, bits, tasks, H, H // k.shape[1], n, blocks,
        words, D, SCALE=D**-0.5, RULE=rule, AMOUNT=amount, LEAST=least, MOST=most,
        QUERY_TILES=query_tiles,
        WEIGHTED=weights is not None and query_tiles > 1, AT_RUN_TIME=amount_tensor is not None,
        ALWAYS=always is not None,
        BLOCK_M=_BLOCK_M, BLOCK_N=block_n, BLOCK_R=max(1, min(_BLOCK_M, values // block_s)),
        BLOCK_S=block_s, BLOCK_D=block_d, BLOCK_K=block_k,
        num_warps=8, num_stages=num_stages,
    )  # fmt: skip
    return bits


def _blocks(x: Tensor, block_d: int) -> tuple[int, int, int]:
    """Keys and columns at a time, and stages: by what spills least. On Hopper 64 keys are a
    warpgroup's, and two of them share what is loaded of queries."""
    if is_hopper(x):
        return 128, block_d if block_d <= 128 else 16, 2
    return 64, 16 if block_d <= 64 else 64, 2 if block_d <= 128 else stages(x)


def _programs(device: torch.device) -> int:
    """As many as run at a time: one fills a multiprocessor's registers."""
    if device.type == "cpu":  # in Triton's interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
