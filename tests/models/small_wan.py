"""For the tests of Wan: a small model with every weight awake, its batches, and its twin, the
WanTransformer3DModel of diffusers with the same weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest import mock

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from models.attention import Dense, Slot
from models.wan import WanConfig, WanModel
from models.wan.formats import to_key

Triple = tuple[int, int, int]
DENSE = Dense()


def small_wan(
    grid: Triple = (3, 4, 6), attention: Slot = DENSE, seed: int = 0, **changes: Any
) -> WanModel:
    """Two layers of two heads of 16 on a grid of tokens; patches are (1, 2, 2), as in Wan.

    A fresh model says zero and hides most of itself, so every weight gets noise of its own scale.
    """
    shape: dict[str, Any] = dict(
        in_channels=4, out_channels=4, dim=32, heads=2, layers=2, ffn=64, text_dim=8, freq_dim=32
    )
    torch.manual_seed(seed)
    video = (grid[0], 2 * grid[1], 2 * grid[2])
    model = WanConfig(video=video, attention=attention, **(shape | changes)).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=parameter.shape[-1] ** -0.5)
    return model


def draw_batch(
    config: WanConfig, batch: int = 2, seed: int = 0, words: int = 5, pictures: int = 3
) -> list[Tensor]:
    """x, t, context, and the picture if the config has one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.in_channels, *config.video, generator=generator)
    t = torch.rand(batch, generator=generator)
    context = torch.randn(batch, words, config.text_dim, generator=generator)
    if config.image_dim is None:
        return [x, t, context]
    tokens = config.pos_embed_seq_len or pictures
    return [x, t, context, torch.randn(batch, tokens, config.image_dim, generator=generator)]


def gradients(model: nn.Module, output: Tensor, inputs: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every output differently, by name of the parameter; inputs
    are "input 0" and so on."""
    weight = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    named = dict(model.named_parameters()) | {f"input {i}": x for i, x in enumerate(inputs)}
    return dict(zip(named, torch.autograd.grad((output * weight).sum(), list(named.values()))))


class Sinusoids(nn.Module):
    """Of times in 0..1000, with angles in fp64, as Wan has them. Those of diffusers are fp32, which
    at 1000 would make it a lenient measure of all that comes after."""

    def __init__(self, channels: int, dtype: torch.dtype):
        super().__init__()
        self.channels, self.dtype = channels, dtype

    def forward(self, t: Tensor) -> Tensor:
        place = torch.arange(self.channels // 2, dtype=torch.float64) / (self.channels // 2)
        angle = torch.outer(t.double(), torch.pow(10_000, -place))
        return torch.cat((angle.cos(), angle.sin()), 1).to(torch.float32).to(self.dtype)


def twin_of(model: WanModel) -> WanTransformer3DModel:
    """diffusers' model with the weights of ours, in their dtypes."""
    config = model.config
    twin = WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        eps=config.eps,
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
        pos_embed_seq_len=config.pos_embed_seq_len,
    )
    weights = {to_key(n, "diffusers"): w.clone() for n, w in model.state_dict().items()}
    twin.load_state_dict(weights, assign=True)
    dtype = model.time_embedding[0].weight.dtype
    twin.condition_embedder.timesteps_proj = Sinusoids(config.freq_dim, dtype)
    return twin


def exact_twin_of(model: WanModel) -> WanTransformer3DModel:
    """The same in fp64 (the weights rounded as they are); call it within `everything_in_fp64`."""
    return twin_of(deepcopy(model).double())


@contextmanager
def everything_in_fp64() -> Iterator[None]:
    """`.float()`, by which diffusers has its norms and modulation in fp32, means fp64 here."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield
