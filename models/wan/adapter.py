"""LoRA's matrices as files of their own, with VSA's gates beside them, by diffusers' names.

A folder has `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(FOLDER)` takes, in
PEFT's names, and where there are gates `gates.safetensors`, for `load_gates(model, FOLDER)`. The
scale, alpha / rank, is in `lora_B`: without an alpha every loader takes 1.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.wan.checkpoint import drafted
from models.wan.formats import to_key
from models.wan.shards import GATES

LORA = "pytorch_lora_weights.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def save_adapter(
    adapters: Mapping[str, tuple[Tensor, Tensor]], gates: Mapping[str, Tensor], folder: Path
) -> None:
    """Write adapters and gates by the names that they have in a WanModel.

    Args:
        adapters: of a linear layer, A [rank, in] and B [out, rank], the scale within.
        gates: parameters of slots; may be none.
        folder: new or empty; it appears when it is complete.
    """
    tensors = {}
    for name, pair in adapters.items():
        stem = to_key(f"{name}.weight", "diffusers").removesuffix(".weight")
        tensors |= {f"transformer.{stem}{end}": x for end, x in zip((_A, _B), pair)}
    with drafted(folder) as draft:
        save_file({k: x.contiguous() for k, x in tensors.items()}, draft / LORA, {"format": "pt"})
        if gates:
            named = {to_key(name, "diffusers"): x.contiguous() for name, x in gates.items()}
            save_file(named, draft / GATES, {"format": "pt"})
