"""For the tests of models: a small model with every weight awake, its batches, its errors."""

from copy import deepcopy
from typing import Any

import torch
from laws import assert_accurate
from torch import Tensor, nn

from models.attention import Dense, Slot
from models.video_dit import VideoDiT, VideoDiTConfig

Triple = tuple[int, int, int]
DENSE = Dense()


def small_model(
    video: Triple = (3, 4, 6), attention: Slot = DENSE, seed: int = 0, **changes: Any
) -> VideoDiT:
    """Two layers of two heads of 16 on a video of 1 x 1 x 1 patches, so that `video` is the grid.

    A fresh model says zero and hides most of itself, so every weight gets noise of its own scale.
    """
    shape: dict[str, Any] = dict(
        channels=4, patch=(1, 1, 1), dim=32, heads=2, layers=2, ffn=64, context_dim=8
    )
    torch.manual_seed(seed)
    model = VideoDiTConfig(video=video, attention=attention, **(shape | changes)).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=parameter.shape[-1] ** -0.5)
    return model


def draw_batch(
    config: VideoDiTConfig, batch: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and context."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.channels, *config.video, generator=generator)
    context = torch.randn(batch, 5, config.context_dim, generator=generator)
    return x, torch.rand(batch, generator=generator), context


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every output differently, by name of the parameter."""
    weight = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad((output * weight).sum(), parameters)))


def assert_equals_dense(sparse: VideoDiT, dense: VideoDiT, seed: int) -> None:
    """Output and gradients of all weights that `dense` has, as exact as its own in its dtype."""
    dtype, exact = next(dense.parameters()).dtype, deepcopy(dense).double()
    x, t, context = draw_batch(dense.config, seed=seed)
    x, context = x.to(dtype), context.to(dtype)
    results = []
    for model, noisy in ((sparse, x), (dense, x), (exact, x.double())):
        output = model(noisy, t, context)
        by_name = gradients(model, output)
        results.append([output, *(by_name[name] for name in exact.state_dict())])
    ours, eager, truth = results
    assert_accurate(ours, [eager], truth)
