"""From which sparsity on VSA and BSA train faster than dense attention on this device.

    python -m benchmarks.break_even [--rounds 5]

A layer of 8,192 tokens, 4 heads of 64, 64-token tiles (fp32 on a CPU, bf16 on a GPU), forward and
backward, as a trainer measures it before a schedule of sparsity starts; for several targets, since
the trainer takes the time for linear in the tiles between all and the target. Proves first that
with all tiles and all queries the layers are dense attention. Appends rows to
``benchmarks/results/break_even.jsonl``.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.record import write_row
from flexsparse.nn import BSA as BSALayer
from flexsparse.nn import VSA as VSALayer
from models.attention import BSA, VSA
from models.video_dit import VideoDiTConfig
from train.sparsity.break_even import measure_break_even

VIDEO, HEADS, DIM = (8, 32, 32), 4, 64
SPARSITIES = (0.5, 0.75, 0.875)
SLOTS = {
    "vsa": lambda s: VSA(sparsity=s),
    "bsa": lambda s: BSA(sparsity=s, keep=0.5, window=(2, 2, 2)),
}


def prove(device: str, dtype: torch.dtype) -> None:
    """With all tiles, the listed kernels have at most twice the dense kernel's error to fp64."""
    tiling = VSA().tiling(VIDEO)
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, HEADS, tiling.padded_tokens, DIM)
    q, k, v = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    x = q.transpose(1, 2).flatten(2)
    layers = VSALayer(HEADS * DIM, HEADS, None, adapt=True), BSALayer(None, keep=1)
    for layer in layers:
        layer.to(device, dtype)
        dense = layer(x, q, k, v, tiling)
        layer.kv_rule = tiling.num_tiles
        listed = layer(x, q, k, v, tiling)
        for head in range(HEADS):  # fp64 scores of all heads at once would not fit everywhere
            exact = _attend(*(y[:, head].double() for y in (q, k, v)))
            errors = [(y[:, head] - exact).square().mean().sqrt() for y in (listed, dense)]
            assert errors[0] <= 2 * errors[1], f"{layer}: error {errors[0]:.3g}, {errors[1]:.3g}"
    print("right: with all tiles and queries, error to fp64 at most twice dense attention's")


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.ones(31 << 18)  # see benchmarks/cpu/__main__.py: from here on glibc keeps freed memory
    with torch.no_grad():
        prove(device, dtype)
    for method, slot in SLOTS.items():
        for sparsity in SPARSITIES:
            config = VideoDiTConfig(
                channels=1,
                video=VIDEO,
                patch=(1, 1, 1),
                dim=HEADS * DIM,
                heads=HEADS,
                layers=1,
                ffn=DIM,
                attention=slot(sparsity),
            )
            found = measure_break_even(config.build().to(device), 1, dtype, rounds=rounds)
            write_row(
                "break_even",
                device,
                method=method,
                shape=[1, HEADS, config.build().tokens, DIM],
                dtype=str(dtype).removeprefix("torch."),
                target=found.target,
                dense_ms=round(1e3 * found.dense, 2),
                all_tiles_ms=round(1e3 * found.all_tiles, 2),
                target_ms=round(1e3 * found.at_target, 2),
                break_even=round(found.sparsity, 3),
            )
            print(f"{method}: {found}", flush=True)


if __name__ == "__main__":
    main()
