"""Every case by its name: layers, whole models, and the fine stage in each config of the tables."""

from __future__ import annotations

from benchmarks.compiled.capture import Case
from benchmarks.compiled.families import FAMILIES
from benchmarks.compiled.layers import Grid, bsa_case, fine_case, literal_case, long_case, vsa_case
from benchmarks.compiled.models import diffusers_case, dit_case, wan_case
from flexsparse import Mass, Threshold, TopK
from models.attention import BSA, VSA, Dense

LONG: dict[str, tuple[Grid, Grid, int]] = {
    "153k": ((40, 48, 80), (4, 4, 4), 12),
    "75k": ((21, 45, 80), (3, 5, 4), 40),
}
SHAPES = ("full64", "padded64", "ragged64", "full128")
LAYERS: dict[str, Case] = {
    **{
        f"vsa_{shape}_d{dim}{'_gated' if gates else ''}": vsa_case(shape, dim, gates)
        for shape in SHAPES
        for dim in (64, 128)
        for gates in (False, True)
    },
    **{
        f"bsa_{shape}_d{dim}_{name}": bsa_case(shape, dim, kv)
        for shape in SHAPES
        for dim in (64, 128)
        for name, kv in (("threshold", Threshold(8)), ("mass", Mass(0.9, max_tiles=32)))
    },
    **{f"bsa_full64_d{dim}_top": bsa_case("full64", dim, TopK(8)) for dim in (16, 32, 64, 256)},
    **{
        f"vsa_{shape}_d{dim}_gated_pairs": vsa_case(shape, dim, True, query_tiles=2)
        for shape in ("full64", "padded64", "ragged64")
        for dim in (64, 128)
    },
    **{
        f"vsa_{shape}_d{dim}_inference": vsa_case(shape, dim, False)
        for shape in ("full64", "padded64")
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
    **{f"literal_full64_d{dim}": literal_case("full64", dim) for dim in (64, 128)},
    "vsa_text64_d128_gated": vsa_case("text64", 128, True),
    "vsa_parts64_d128_gated": vsa_case("parts64", 128, True),
    "bsa_text64_d128_threshold": bsa_case("text64", 128, Threshold(8)),
}
MODELS: dict[str, Case] = {
    "dit_dense": dit_case(Dense()),
    "dit_vsa": dit_case(VSA(sparsity=0.875, tile=(4, 4, 4))),
    "dit_bsa": dit_case(BSA(sparsity=0.875)),
    "wan_vsa": wan_case(VSA(sparsity=0.9, adapt=True)),
    "wan_bsa": wan_case(BSA(sparsity=0.875)),
    "diffusers_wan": diffusers_case,
    **FAMILIES,
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
