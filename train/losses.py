"""What training minimises: the loss of flow matching, or one with a teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from train.flow import flow_loss
from train.sparsity.attention_stats import slots
from train.weights.lora import LoRALinear


class Loss(Protocol):
    """Of each clip, [B] in fp32. Write your own likewise."""

    def __call__(
        self, model: Any, x0: Tensor, context: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor: ...

    def check(self, model: Any) -> None:
        """Raise ValueError for a model's config that it cannot be taken of; before any work."""
        ...


@dataclass(frozen=True)
class FlowLoss:
    """The squared error of the predicted velocity, see `train.flow.flow_loss`."""

    def __call__(self, model: Any, x0: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return flow_loss(model, x0, context, noise, t)

    def check(self, model: Any) -> None:
        pass


@dataclass(frozen=True)
class VelocityDistillation:
    """Learn, sparse, the velocity that the same weights give with dense attention.

    A pretrained model that is made sparse is to compute what it did, and clips that it was not
    trained on teach it something else besides (SpargeAttention2, arXiv 2602.13515, has that as its
    reason to distil). The teacher is the model itself, without gates and LoRA's adapters, at no
    memory of its own: one more forward pass, with no gradient. With LoRA it stays what it was; else
    it moves with the weights, and only the clips hold it: with a weight of 1 both ran away together
    where this was tried (docs/evidence.md, Adaptation).

    Args:
        weight: of the teacher's velocity; the rest, up to 1, is of flow matching's own.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"loss.weight is {self.weight}: give a share above 0, at most 1")

    def __call__(self, model: Any, x0: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        s = t.view(-1, 1, 1, 1, 1)
        x = (1 - s) * x0 + s * noise
        with torch.no_grad(), dense(model):
            taught = model(x, t, context).float()
        predicted = model(x, t, context).float()

        def apart(due: Tensor) -> Tensor:
            return (predicted - due).square().mean((1, 2, 3, 4))

        return self.weight * apart(taught) + (1 - self.weight) * apart(noise - x0)

    def check(self, model: Any) -> None:
        with torch.device("meta"):
            found = slots(model.build())
        if not found or not all(hasattr(slot, "dense") for slot in found):
            names = ", ".join(sorted({type(slot).__name__ for slot in found})) or "none"
            raise ValueError(
                f"loss is {self}, but the model's attention ({names}) has no dense form that it "
                f"could learn from: give attention VSA or BSA, or leave the loss out"
            )


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Within it, the attention of all layers is dense, without gates, and LoRA lies aside."""
    attention: list[Any] = slots(model)
    adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]

    def switch(on: bool) -> None:
        for slot in attention:
            slot.dense = on
        for adapter in adapters:
            adapter.aside = on

    switch(True)
    try:
        yield
    finally:
        switch(False)
