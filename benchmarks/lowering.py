"""What torch.compile makes of VSA, BSA and a DiT's train step on CUDA: launches, and calls outside.

    python -m benchmarks.lowering        (needs a CUDA GPU; measures no time)

    python -m benchmarks.lowering --configs

Each case is a function of a device that returns a callable and its arguments, which require grad;
``--configs`` has the fine stage alone, for every row of ``flexsparse/kernel_configs.py``.
``docs/performance.md`` has the counts, with registers and spills, compiled for sm_80, sm_90 and
sm_100 by torch 2.11 and its Triton.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    flex_attention,
    vsa_attention,
)
from flexsparse.block_mask import tile_block_mask
from flexsparse.kv_rules import Rule
from flexsparse.selection import tile_map
from models.attention import BSA, VSA, Dense
from models.video_dit import VideoDiTConfig
from models.wan import wan_1_3b

Case = Callable[[torch.device], tuple[Callable[..., Tensor], list[Tensor]]]
TOKENS: dict[str, Any] = {
    "full64": ((16, 16, 16), (4, 4, 4)),  # 64 rows, no padding
    "padded64": ((21, 10, 12), (3, 5, 4)),  # 60 tokens in 64 rows, as on Wan's grids
    "ragged64": ((15, 15, 15), (4, 4, 4)),  # some tiles full, some not
    "full128": ((16, 16, 16), (4, 4, 8)),  # 128 rows
    "ragged128": ((15, 15, 15), (4, 4, 8)),
    "text64": ((15, 15, 15), (4, 4, 4), 64, 226),  # with text, as CogVideoX has it
}


def vsa_case(
    shape: str, dim: int, gates: bool, annealed: bool = False, query_tiles: int = 1
) -> Case:
    """One VSA layer in bf16: from q, k, v (and a coarse gate) to the output."""
    tiling = VideoTiling(*TOKENS[shape])

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        size = (1, 4, tiling.padded_tokens, dim)
        options: dict[str, Any] = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
        inputs = [torch.empty(size, **options) for _ in range(4 if gates else 3)]
        top_k = (
            TopK(torch.empty((), dtype=torch.int32, device=device), max_tiles=48) if annealed else 8
        )

        def attend(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
            choice: Any = dict(top_k=top_k, query_tiles=query_tiles)
            return vsa_attention(q, k, v, tiling, gate_coarse=gate, **choice)

        return attend, inputs

    return case


def bsa_case(shape: str, dim: int, kv: Rule, annealed: bool = False, query_tiles: int = 1) -> Case:
    """One BSA layer in bf16, half of the queries kept: blocks of 32 query rows (64 of full128)."""
    tiling = VideoTiling(*TOKENS[shape])
    window = (3, 5, 2) if shape == "padded64" else (2, 2, 2)

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        size = (1, 4, tiling.padded_tokens, dim)
        options: dict[str, Any] = dict(device=device, dtype=torch.bfloat16, requires_grad=True)

        rule = Threshold(torch.empty((), dtype=torch.int32, device=device)) if annealed else kv

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            choice: Any = dict(kv=rule, query_tiles=query_tiles)
            return bsa_attention(q, k, v, tiling, keep=0.5, window=window, **choice)

        return attend, [torch.empty(size, **options) for _ in range(3)]

    return case


def fine_case(shape: str, dim: int, block: tuple[int, int | None], dtype: str = "bfloat16") -> Case:
    """The fine stage alone, under a mask that is made of a choice: FlexAttention's kernels and
    those that make the lists. A block is so many query tiles, of so many rows (None: the keys')."""
    tiling, (query_tiles, q_rows) = VideoTiling(*TOKENS[shape]), block

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        options: Any = dict(device=device, dtype=getattr(torch, dtype), requires_grad=True)
        queries = tiling.num_tiles * (q_rows or tiling.rows)
        q = torch.empty(1, 4, queries, dim, **options)
        k, v = (torch.empty(1, 4, tiling.padded_tokens, dim, **options) for _ in range(2))
        blocks = -(-tiling.num_tiles // query_tiles)
        chosen = torch.empty(1, 4, blocks, 8, dtype=torch.int32, device=device)

        def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
            chosen = tile_map(chosen, tiling.num_tiles)
            options: Any = dict(most=8, q_rows=q_rows, query_tiles=query_tiles)
            mask = tile_block_mask(chosen, tiling, **options)
            return flex_attention(q, k, v, block_mask=mask)

        return attend, [q, k, v, chosen]

    return case


def dit_case(attention: Any) -> Case:
    """A squared loss of a two-layer DiT in bf16, 4,096 tokens."""

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        config = VideoDiTConfig(
            channels=16,
            video=(16, 32, 32),
            patch=(1, 2, 2),
            dim=256,
            heads=4,
            layers=2,
            ffn=512,
            context_dim=64,
            attention=attention,
        )
        torch.set_default_dtype(torch.bfloat16)
        try:
            with device:
                model = config.build()
                video = torch.empty(1, 16, *config.video, requires_grad=True)
                t, context = torch.empty(1, dtype=torch.float32), torch.empty(1, 8, 64)
        finally:
            torch.set_default_dtype(torch.float32)

        def loss(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return (model(x, t, context) - x).square().mean()

        return loss, [video, t, context]

    return case


def wan_case(attention: Any) -> Case:
    """The mean square of what two layers of Wan 2.1 1.3B say at 480p, 32,760 tokens, in bf16."""

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        config = wan_1_3b(layers=2, attention=attention)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with device:
                model = config.build()
                latent = torch.empty(1, 16, *config.video, requires_grad=True)
                t, text = torch.empty(1, dtype=torch.float32), torch.empty(1, 512, config.text_dim)
        finally:
            torch.set_default_dtype(torch.float32)

        def square(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return model(x, t, text).square().mean()

        return square, [latent, t, text]

    return case


def long_case(video: Grid, tile: Grid, heads: int, kind: str) -> Case:
    """A layer at a size that is timed: VSA with both gates and pairs of query tiles, 87.5 %; BSA
    with fours, 95 %."""
    tiling = VideoTiling(video, tile)
    n, window = tiling.num_tiles, (2, 2, 2) if tile == (4, 4, 4) else (3, 5, 2)

    def case(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
        options: Any = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
        size = (1, heads, tiling.padded_tokens, 128)
        rule, top_k = Threshold(round(n / 10)), round(n / 8)

        def vsa(q: Tensor, k: Tensor, v: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
            gates: Any = dict(gate_coarse=coarse, gate_fine=fine)
            return vsa_attention(q, k, v, tiling, top_k=top_k, query_tiles=2, **gates)

        def bsa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bsa_attention(q, k, v, tiling, kv=rule, window=window, query_tiles=4)

        count = 5 if kind == "vsa" else 3
        return (vsa if kind == "vsa" else bsa), [torch.empty(size, **options) for _ in range(count)]

    return case


Grid = tuple[int, int, int]
LONG: dict[str, tuple[Grid, Grid, int]] = {
    "153k": ((40, 48, 80), (4, 4, 4), 12),
    "75k": ((21, 45, 80), (3, 5, 4), 40),
}
LAYERS = ("full64", "padded64", "ragged64", "full128")
CASES: dict[str, Case] = {
    **{
        f"vsa_{shape}_d{dim}{'_gated' if gates else ''}": vsa_case(shape, dim, gates)
        for shape in LAYERS
        for dim in (64, 128)
        for gates in (False, True)
    },
    **{
        f"bsa_{shape}_d{dim}_{name}": bsa_case(shape, dim, kv)
        for shape in LAYERS
        for dim in (64, 128)
        for name, kv in (("threshold", Threshold(8)), ("mass", Mass(0.9, max_tiles=32)))
    },
    **{f"bsa_full64_d{dim}_top": bsa_case("full64", dim, TopK(8)) for dim in (16, 32, 256)},
    **{
        f"vsa_{shape}_d{dim}_gated_pairs": vsa_case(shape, dim, True, query_tiles=2)
        for shape in ("full64", "padded64", "ragged64")
        for dim in (64, 128)
    },
    "bsa_full64_d128_pairs": bsa_case("full64", 128, Threshold(8), query_tiles=4),
    "bsa_ragged64_d128_pairs": bsa_case("ragged64", 128, Threshold(8), query_tiles=4),
    "vsa_full64_d64_annealed": vsa_case("full64", 64, False, annealed=True),
    "bsa_full64_d64_annealed": bsa_case("full64", 64, Threshold(8), annealed=True),
    **{
        f"{kind}_{name}": long_case(*sizes, kind)
        for kind in ("vsa", "bsa")
        for name, sizes in LONG.items()
    },
    "vsa_text64_d128_gated": vsa_case("text64", 128, True),
    "bsa_text64_d128_threshold": bsa_case("text64", 128, Threshold(8)),
    "dit_dense": dit_case(Dense()),
    "dit_vsa": dit_case(VSA(sparsity=0.875, tile=(4, 4, 4))),
    "dit_bsa": dit_case(BSA(sparsity=0.875)),
    "wan_vsa": wan_case(VSA(sparsity=0.9, adapt=True)),
    "wan_bsa": wan_case(BSA(sparsity=0.875)),
}
BLOCKS: dict[str, tuple[int, int | None]] = {"q128": (2, None), "q64": (1, None), "q32": (1, 32)}
CONFIGS: dict[str, Case] = {
    **{
        f"{name}_k64_d{dim}_{shape}": fine_case(shape, dim, block)
        for name, block in BLOCKS.items()
        for dim in (64, 128)
        for shape in ("full64", "ragged64")
    },
    **{
        f"q128_k128_d{dim}_{shape}": fine_case(shape, dim, BLOCKS["q64"])
        for dim in (64, 128)
        for shape in ("full128", "ragged128")
    },
    **{
        f"{name}_k64_d256_ragged64": fine_case("ragged64", 256, BLOCKS[name])
        for name in ("q64", "q32")
    },
    "q32_k64_d32_full64": fine_case("full64", 32, BLOCKS["q32"]),
    **{
        f"q64_k64_d{dim}_ragged64_float32": fine_case("ragged64", dim, BLOCKS["q64"], "float32")
        for dim in (64, 128, 256)
    },
}
globals().update(CASES | CONFIGS)  # each case has a name of its own in this module


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.lowering: there is no CUDA GPU here to compile for", file=sys.stderr)
        return 2
    from torch._inductor.utils import run_and_get_code

    for name, case in (CONFIGS if "--configs" in sys.argv else CASES).items():
        function, inputs = case(torch.device("cuda"))
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def step(*inputs: Tensor) -> None:
            compiled(*inputs).sum().backward()  # noqa: B023

        _, sources = run_and_get_code(step, *inputs)
        for graph, source in zip(("forward", "backward"), sources):
            body = source[source.rfind("def call(") :]
            launches = re.findall(r"^\s+\w+\.run\(", body, re.M)
            outside = re.findall(r"extern_kernels\.\w+|torch\.ops\.[\w.]+(?=\()", body)
            print(f"{name:24} {graph:9} {len(launches):3} Triton, {len(outside):3} outside")
    return 0


if __name__ == "__main__":
    sys.exit(main())
