"""LoRA (Hu et al., arXiv 2106.09685): the weights stay, and products of two thin matrices train.

torchtitan's own rewrites the configs of its models, and ours are plain modules.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(kw_only=True, slots=True)
class LoRAConfig:
    rank: int = 0
    """Of the adapters; 0: none, all weights train."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
    """Linear layers that get one, by the last parts of their names."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or (self.rank and not self.targets):
            raise ValueError(
                f"lora.rank is {self.rank}, lora.alpha {self.alpha:g} with {len(self.targets)} "
                f"targets: give a rank of at least 0, an alpha above 0, and a target"
            )


class LoRALinear(nn.Linear):
    """x -> x W' + b + alpha / rank * (x A') B', where A [rank, in] and B [out, rank] train.

    B starts at zero: a new layer is the linear one that it takes weight and bias from. They keep
    their names.
    """

    adapt = True  # the checkpoint of a model without adapters fits, see Checkpointer.dcp_load
    aside = False  # assigned True: the linear layer as it was

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.normal_(self.lora_a, std=linear.in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        out = F.linear(input, self.weight, self.bias)
        if self.aside:
            return out
        return out + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same, up to rounding."""
        out, width = self.weight.shape
        linear = nn.Linear(width, out, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight + self.scale * (self.lora_b @ self.lora_a))
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Give the targets adapters, in place, and freeze the rest but for what attention slots own.

    Slots' parameters, VSA's gates, may be as new as the adapters. With rank 0 nothing changes.

    Raises:
        ValueError: a target that is the name of no linear layer.
    """
    if not config.rank:
        return
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    found = {t: [n for n in linears if f".{n}".endswith(f".{t}")] for t in config.targets}
    if unknown := [target for target, names in found.items() if not names]:
        kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in linears})
        raise ValueError(
            f"lora.targets: no linear layer is called {', '.join(unknown)}; the model has "
            f"{', '.join(kinds)}"
        )
    model.requires_grad_(False)
    chosen = {name for names in found.values() for name in names}
    for name, linear in linears.items():  # in the model's order: adapters draw numbers
        if name in chosen:
            _put(model, name, LoRALinear(linear, config.rank, config.alpha))
    for module in model.modules():
        if hasattr(module, "kv_rule"):
            module.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Put plain linear layers in the place of those with adapters."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            _put(model, name, module.merged())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
