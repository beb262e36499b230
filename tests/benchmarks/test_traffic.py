"""Bytes by formula are those of real tensors, and what kernels ask for in Triton's interpreter."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpu_settings import CPU

from benchmarks import report
from benchmarks.gpu import traffic
from benchmarks.gpu.cases import Setting
from benchmarks.gpu.layers import KEEP, draw, window_of
from benchmarks.gpu.list_memory import COLUMNS, ROWS, SETTINGS, list_memory
from flexsparse import TopK
from flexsparse.choice.choose import choose_tiles
from flexsparse.choice.lists import tile_lists_twin
from flexsparse.stages import queries as of_queries
from flexsparse.stages.coarse import coarse_attention
from flexsparse.stages.gates import combine
from flexsparse.stages.pooling import pool_each
from flexsparse.stages.windows import Windows

FULL = Setting("full", (8, 20, 32), (4, 4, 4), 1, 16)
PADDED = Setting("padded", (6, 10, 8), (3, 5, 4), 2, 32)
both = pytest.mark.parametrize("setting", [FULL, PADDED], ids=lambda s: s.name)


def problem(setting):
    """The tensors of a layer, from q to the choice of each number of query tiles."""
    tensors = draw(setting, CPU, torch.bfloat16)
    means = pool_each(tensors[:3], setting.tiling)
    n = setting.tiling.num_tiles
    most = {x: max(1, round(n / part)) for x, part in traffic.CHOSEN.items()}
    bits = {x: choose_tiles(*means[:2], TopK(k), query_tiles=x) for x, k in most.items()}
    return SimpleNamespace(tensors=tensors, means=means, most=most, bits=bits)


def size(*xs):
    return sum(x.numel() * x.element_size() for x in xs)


@both
def test_bytes_are_those_of_inputs_and_outputs(setting):
    tiling = setting.tiling
    p, moved = problem(setting), traffic.traffic(setting)
    q, k, v, *gates = p.tensors

    def read(*xs):  # padding is not
        return size(*xs) * tiling.tokens // tiling.padded_tokens

    for names, xs in (("k", [k]), ("q, k", [q, k]), ("q, k, v", [q, k, v])):
        assert moved[f"pool {names}"]["forward"] == (read(*xs), size(*pool_each(xs, tiling)), 0)
    for x, bits in p.bits.items():
        assert moved[f"choose x{x}"]["forward"][:2] == (size(*p.means[:2]), size(bits))
        lists = tile_lists_twin(bits, tiling, p.most[x], True)
        assert moved[f"lists x{x}"]["inference"] == (size(bits), size(*lists[:2]), 0)
        listed = size(*lists[:3]) + 4 * int(lists[2].sum())
        assert moved[f"lists x{x}"]["training"] == (size(bits), listed, size(bits))
    coarse = coarse_attention(*p.means)
    sums = coarse[..., 0]  # the log-sum-exp, one for each tile
    steps = moved["coarse attention"]
    assert steps["forward"][:2] == (size(*p.means), size(coarse, sums))
    assert steps["backward"][:2] == (size(*p.means, coarse, coarse, sums), size(*p.means))
    out = combine(v, coarse, *gates, tiling)
    steps = moved["combine"]
    assert steps["forward"] == (read(v, *gates) + size(coarse), size(out), 0)
    grads = size(v, coarse, *gates)
    assert steps["backward"] == (read(out, v, *gates) + size(coarse), grads, 0)
    kept = of_queries.prune_queries(q, tiling, keep=KEEP, window=window_of(setting))
    stay = int((kept.index >= 0).sum()) * size(q[0, 0, 0])
    steps = moved["prune"]
    means = size(p.means[0])  # of the queries that stay
    assert steps["forward"] == (read(q), size(kept.q, kept.index) + means, 0)
    assert steps["backward"] == (stay + size(kept.index), size(q), 0)
    rows, steps = of_queries.restore_queries(kept.q, kept, tiling), moved["restore"]
    source = 4 * setting.heads * tiling.padded_tokens  # the slot that each row took
    windows = kept.windows
    held = kept.index[..., : windows.num_windows * windows.per_window]
    assert steps["forward"] == (stay + size(held), size(rows) + source, 0)
    assert steps["backward"] == (read(rows) + source, size(kept.q), 0)


@pytest.fixture
def asked(monkeypatch):
    """Bytes that kernels load and store, each address once in a load."""
    if sys.platform != "linux" or torch.cuda.is_available():
        pytest.skip("Triton's interpreter runs here")
    from triton.runtime.interpreter import InterpreterBuilder

    asked = [0]

    def count(name):
        run = getattr(InterpreterBuilder, name)

        def counted(self, pointers, *rest):
            mask = rest[name == "create_masked_store"].data.astype(bool)
            width = pointers.get_element_ty().primitive_bitwidth // 8
            asked[0] += width * len(np.unique(pointers.data[mask]))
            return run(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, counted)

    count("create_masked_load")
    count("create_masked_store")

    def of(kernel, *arguments):
        asked[0] = 0
        return kernel(*arguments), asked[0]

    return of


def test_kernels_between_tiles_ask_for_so_many_bytes(asked, monkeypatch):
    from flexsparse.kernels import coarse_attention as coarse
    from flexsparse.kernels import select_tiles, tile_lists

    for kernels in coarse, select_tiles:
        monkeypatch.setattr(kernels, "is_hopper", lambda x: True)
    tiling, p, moved = FULL.tiling, problem(FULL), traffic.traffic(FULL)
    for x in (1, 4):
        most = p.most[x]
        arguments = *p.means[:2], None, "top", float(most), None, most, most, x
        bits, found = asked(select_tiles.select_tiles, *arguments)
        assert found == sum(moved[f"choose x{x}"]["forward"])
        given = bits, list(tiling.video), list(tiling.tile), tiling.rows, 0, most
        _, found = asked(tile_lists.tile_lists, *given, False)
        assert found == sum(moved[f"lists x{x}"]["inference"])
        lists, found = asked(tile_lists.tile_lists, *given, True)
        empty = int((lists[2].sum(0) == 0).sum())  # tiles that none chose: one index each
        assert found == sum(moved[f"lists x{x}"]["training"]) + 4 * empty
    (out, lse), found = asked(coarse.coarse_attention, *p.means, 0.25, False)
    assert found == sum(moved["coarse attention"]["forward"])
    _, found = asked(coarse.coarse_attention_backward, out, *p.means, out, lse, 0.25)
    assert found == sum(moved["coarse attention"]["backward"])


@pytest.mark.parametrize("setting", [FULL._replace(video=(4, 8, 4)), PADDED], ids=lambda s: s.name)
def test_kernels_on_tokens_ask_for_so_many_bytes(setting, asked):
    from flexsparse.kernels import combine, pool_tiles, prune_queries, restore_rows

    tiling, moved = setting.tiling, traffic.traffic(setting)
    shape = list(tiling.video), list(tiling.tile), tiling.rows
    q, k, v, *gates = draw(setting, CPU, torch.bfloat16)
    means, found = asked(pool_tiles.pool_tiles, [q, k, v], *shape, 3)
    assert found == sum(moved["pool q, k, v"]["forward"])
    joined, found = asked(combine.combine, v, means[0], *gates, *shape)
    assert found == sum(moved["combine"]["forward"])
    _, found = asked(combine.combine_backward, joined, v, means[0], *gates, *shape)
    assert found == sum(moved["combine"]["backward"])
    windows = Windows(tiling, KEEP, window_of(setting))
    shape, slots = (*shape, list(windows.size)), windows.per_window
    arguments = q, *shape, KEEP, slots, windows.kept_rows
    (kept, index, _), found = asked(prune_queries.prune_queries, *arguments)
    assert found == sum(moved["prune"]["forward"])
    _, found = asked(prune_queries.prune_queries_backward, kept, index, tiling.rows)
    assert found == sum(moved["prune"]["backward"])
    (rows, source), found = asked(restore_rows.restore_rows, kept, index, *shape, slots, False)
    assert found == sum(moved["restore"]["forward"])
    _, found = asked(restore_rows.restore_rows_backward, rows, source, windows.kept_rows)
    assert found == sum(moved["restore"]["backward"])


def test_sizes_are_the_kernels_own(monkeypatch):
    pytest.importorskip("triton")
    from flexsparse.kernels import coarse_attention, select_tiles

    for kernels in coarse_attention, select_tiles:
        monkeypatch.setattr(kernels, "is_hopper", lambda x: True)
    assert (ROWS, COLUMNS) == (select_tiles._BLOCK_M, select_tiles._blocks(torch.empty(1), 128)[0])
    for step, own in traffic.OWN.items():
        blocks = coarse_attention._blocks(torch.empty(1, 1, 1, 128), step == "backward")
        assert (own, traffic.OTHER) == (blocks["BLOCK_I"], blocks["BLOCK_J"])


@both
@pytest.mark.parametrize("query_tiles", [1, 2, 4])
def test_lists_take_what_their_tensors_do(setting, query_tiles):
    p, n = problem(setting), setting.tiling.num_tiles
    bits, most = p.bits[query_tiles], p.most[query_tiles]
    lists = tile_lists_twin(bits, setting.tiling, most, True)
    found = list_memory(setting, query_tiles, most)
    assert found[:4] == (size(bits), size(*lists[:2]), size(*lists[2:]), size(*p.means[:2]))
    assert (found.kept(False), found.kept(True)) == (size(*lists[:2]), size(*lists))
    assert found.peak(True) >= found.bits + found.kept(True) > found.kept(False)
    wide = list_memory(setting, query_tiles, n)
    assert wide.by_query - found.by_query == 4 * p.bits[query_tiles][..., 0].numel() * (n - most)


def test_the_page_says_what_the_formulas_give():
    page = " ".join((report.DOCS / "results/memory.md").read_text().split())
    one, two = (list_memory(SETTINGS[0], x, 158) for x in (1, 2))
    figures = [one.kept(True), two.kept(True), one.bits]
    training, pairs, bits = (f"{x / 1e6:.0f} MB" for x in figures)
    assert f"not for training: {training}, and {pairs} with pairs" in page
    assert f"keeps the bits alone, {bits}," in page
    scratch = [f"{list_memory(s, 1, 1).scratch / 1e6:.0f}" for s in SETTINGS]
    assert f"{scratch[0]} and {scratch[1]} MB" in page
