"""Whole models to compile, each with a loss: functions of a device, as in ``layers.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.compiled.capture import Built, Case
from models.video_dit import VideoDiTConfig
from models.wan import wan_1_3b
from train.flow import flow_loss


@contextmanager
def in_bf16(device: torch.device) -> Iterator[None]:
    """What is made here, parameters too, is bf16 on the device: modules cannot be moved to it."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def dit_case(attention: Any) -> Case:
    """A DiT of one layer, 4,096 tokens: flow matching's loss and its gradients."""
    config = VideoDiTConfig(
        channels=16,
        video=(16, 32, 32),
        patch=(1, 2, 2),
        dim=256,
        heads=4,
        layers=1,
        ffn=512,
        context_dim=64,
        attention=attention,
    )

    def case(device: torch.device) -> Built:
        with in_bf16(device):
            model = config.build()
            clips, noise = torch.empty(2, 1, 16, *config.video)
            context, t = torch.empty(1, 8, 64), torch.empty(1, dtype=torch.float32)

        def loss(clips: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
            return flow_loss(model, clips, context, noise, t).mean()

        return loss, [clips, context, noise, t]

    return case


def wan_case(attention: Any, layers: int = 2) -> Case:
    """The mean square of what some layers of Wan 2.1 1.3B say at 480p, 32,760 tokens, in bf16."""
    config = wan_1_3b(layers=layers, attention=attention)

    def case(device: torch.device) -> Built:
        with in_bf16(device):
            model = config.build()
            latent = torch.empty(1, 16, *config.video, requires_grad=True)
            t, text = torch.empty(1, dtype=torch.float32), torch.empty(1, 512, config.text_dim)

        def square(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return model(x, t, text).square().mean()

        return square, [latent, t, text]

    return case


def diffusers_case(device: torch.device) -> Built:
    """Two layers of diffusers' Wan, sparsified, at 480p: as ``wan_case``, with heads of 128."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from flexsparse.diffusers import VSA, sparsify

    with in_bf16(device):
        model = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=2)
        latent = torch.empty(1, 16, 21, 60, 104, requires_grad=True)
        t, text = torch.empty(1, dtype=torch.float32), torch.empty(1, 512, 4096)
        sparsify(model, VSA(sparsity=0.9))

    def square(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return model(x, t, text).sample.square().mean()

    return square, [latent, t, text]
