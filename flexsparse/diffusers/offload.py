"""Models whose weights diffusers moves to the device and back: gates that come and go among them.

Accelerate's model and sequential offload, device maps and layerwise casting look up a layer's
weights, or the layer, as it is called, and ask for nothing here but for weights that are in memory.
Group offload (``enable_group_offload``) lists the modules and weights that it moves beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from diffusers.hooks import group_offloading
from torch import Tensor, nn


def check_in_memory(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if some of a model's weights, by name, are where gates cannot be added,
    read or written, or if all of it is in files that are written once."""
    hook = group_offloading._get_top_level_group_offload_hook(model)
    if hook is not None and (path := hook.config.offload_to_disk_path) is not None:
        raise ValueError(
            f"the model's weights are offloaded to {path}: sparsify the model before that, and "
            f"read, save or drop its gates before it, too"
        )
    if away := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(
            f"the weights of {away[0]} are offloaded: sparsify the model before that, and read and "
            f"save its gates before it, too"
        )


def regroup(model: nn.Module, gone: Iterable[nn.Module]) -> None:
    """Group a model's weights anew for group offload, if it has that, since some came or are
    `gone`; diffusers does the same as LoRA comes and goes."""
    for module in gone:
        if hooks := getattr(module, "_diffusers_hook", None):
            hooks.remove_hook("group_offloading", recurse=False)
            hooks.remove_hook("layer_execution_tracker", recurse=False)
    group_offloading._maybe_remove_and_reapply_group_offloading(model)
