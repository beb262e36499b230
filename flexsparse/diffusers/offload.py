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
    read or written, or if some of it is in files that are written once."""
    for config in _groups_of(model).values():
        if (path := config.offload_to_disk_path) is not None:
            raise ValueError(
                f"the model's weights are offloaded to {path}: sparsify the model before that, and "
                f"read, save or drop its gates before it, too"
            )
    if away := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(
            f"the weights of {away[0]} are offloaded: sparsify the model before that, and read and "
            f"save its gates before it, too"
        )


def check_groups(model: nn.Module) -> None:
    """Raise ValueError if parts of a model have group offload of their own: which of them new gates
    would go with, and whether by the same options, only who set it up knows."""
    groups = _groups_of(model)
    one = len({id(config) for config in groups.values()}) == 1
    if groups and not (one and ("" in groups or len({n.partition(".")[0] for n in groups}) > 1)):
        raise ValueError(
            f"parts of the model, as {next(iter(groups))}, have group offload of their own: add or "
            f"drop gates before that, or give it to the whole model, model.enable_group_offload"
        )


def _groups_of(model: nn.Module) -> dict[str, group_offloading.GroupOffloadingConfig]:
    """What group offload was asked to do, by the name of each module that it moves weights at."""
    found = {}
    for name, module in model.named_modules():
        hooks = getattr(module, "_diffusers_hook", None)
        hook = hooks.get_hook("group_offloading") if hooks else None
        if hook is not None:
            found[name] = hook.config
    return found


def regroup(model: nn.Module, gone: Iterable[nn.Module]) -> None:
    """Group a model's weights anew for group offload, if it has that, since some came or are
    `gone`; diffusers does the same as LoRA comes and goes."""
    for module in gone:
        if hooks := getattr(module, "_diffusers_hook", None):
            hooks.remove_hook("group_offloading", recurse=False)
            hooks.remove_hook("layer_execution_tracker", recurse=False)
    group_offloading._maybe_remove_and_reapply_group_offloading(model)
