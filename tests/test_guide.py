"""docs/guide.md: its code runs, in its order, and what it says of it is so."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounter

from flexsparse import Scaled, VideoTiling, reference, vsa_attention
from flexsparse.selfcheck.accuracy import error_ratios

PAGE = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def page():
    """The names that the page's code leaves, with what it printed and the graphs it compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    graphs, printed = CompileCounter(), []
    names = {"print": printed.append}
    if dist.is_initialized():  # by tests of the trainer, which leave theirs
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/guide.md, block {number}", "exec"), names)
        yield SimpleNamespace(printed=printed, graphs=graphs, **names)
    dist.destroy_process_group()


def test_the_code_runs_and_its_gradients_reach_every_parameter(page):
    missing = [name for name, p in page.model.named_parameters() if p.grad is None]
    assert len(BLOCKS) == 13 and not missing


def test_the_table_of_tiles_is_what_the_code_prints(page):
    said = [line.split(": ", 1) for line in page.printed]
    for (_, own), (tile, fitted), video in zip(
        said[::2], said[1::2], ("16 x 28 x 52", "21 x 30 x 52", "21 x 45 x 80")
    ):
        sides = tile.strip("()").replace(", ", " x ")
        best = "the same" if own == fitted else f"{sides}: {fitted}"
        assert f"| {video} | {own} | {best} |" in PAGE


def test_numbers_that_move_are_compiled_once(page):
    def graphs(rule=None):
        for slot in page.slots:
            slot.kv_rule = slot.kv_rule if rule is None else rule
        page.compiled(page.x, page.position)
        return page.graphs.frame_count

    tiles = torch.tensor(9)
    moving = page.TopK(tiles, max_tiles=12)
    first = graphs(moving)
    tiles.fill_(6)
    assert graphs() == first, "a tensor's value must not compile anything"
    assert (graphs(2), graphs(4), graphs(2)) == (first + 1, first + 2, first + 2)


def test_all_tiles_do_not_show_a_wrong_order_and_the_oracle_does():
    """What the page warns of: raster tensors of a video without padding pass all checks."""
    tiling = VideoTiling((8, 8, 12))
    assert tiling.padded_tokens == tiling.tokens
    q, k, v = torch.randn(3, 1, 2, tiling.tokens, 16)
    for top_k, found in ((tiling.num_tiles, False), (3, True)):
        asked = dict(video=tiling.video, tile=tiling.tile, top_k=top_k)
        exact, plain = (
            reference.vsa(q, k, v, **asked, dtype=dtype) for dtype in (torch.float64, torch.float32)
        )
        out = vsa_attention(q, k, v, tiling, top_k=top_k)  # never through to_tiles
        (ratio,) = error_ratios([out], [[plain]], [exact], [q, k, v])
        assert (ratio > 100) == found, (top_k, ratio)


ODD, EVEN = VideoTiling((5, 10, 15)), VideoTiling((8, 8, 12))


CALLS = {
    "q has 750 rows": lambda q: vsa_attention(*[q[..., : ODD.tokens, :]] * 3, ODD, top_k=3),
    "q, k and v": lambda q: vsa_attention(q, q.bfloat16(), q, EVEN, top_k=3),
    "top_k=64": lambda q: vsa_attention(q, q, q, EVEN, top_k=64),
    "q has 4 heads": lambda q: vsa_attention(q, q[:, :2], q[:, :2], EVEN, top_k=3),
    "scores between": lambda q: vsa_attention(q * 1e30, q * 1e30, q, EVEN, top_k=3),
}


@pytest.mark.parametrize("begins", CALLS)
def test_errors_are_those_of_the_table(begins):
    (quoted,) = re.findall(rf"^\| `({begins}[^`]*)`", PAGE, re.M)
    with pytest.raises(ValueError) as error:
        CALLS[begins](torch.randn(1, 4, EVEN.tokens, 16))
    for words in quoted.split("..."):
        assert words.strip() in str(error.value)


def test_the_error_of_a_gpu_is_the_codes_own():
    (quoted,) = re.findall(r"^\| `(the block mask has no[^`]*)`", PAGE, re.M)
    source = (Path(__file__).parents[1] / "flexsparse/engines/flex.py").read_text()
    assert quoted in re.sub(r'"\n\s+"', "", source)


def test_scaled_is_the_fix_for_a_smaller_video():
    assert Scaled(top_k=64).at(12).k == 12
