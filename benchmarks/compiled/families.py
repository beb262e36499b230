"""The sparse layers of every class of diffusers' models, to compile: functions of a device, as in
``layers.py``.

Each is called as its model calls it: a small random model of the tests (``tests/pipelines``), with
heads as wide as those of trained checkpoints, runs once on the CPU in bf16, and what its attention
layers are given there, one of each kind, is what they are compiled for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from benchmarks.compiled.capture import Built, Case
from flexsparse.slots import VSA, Dense

SMALL = Path(__file__).parents[2] / "tests" / "pipelines"
GRID = 6, 16, 24  # tokens: 48 tiles of 4x4x4, of which half are cut, or 36 of NABLA's 1x8x8
ONE = "num_layers", "num_hidden_layers", "num_visual_blocks"  # what classes call their layers
OF_64: dict[str, Any] = dict(attention_head_dim=64)
OF_128: dict[str, Any] = dict(attention_head_dim=128)
HUNYUAN = OF_128 | dict(rope_axes_dim=(16, 56, 56))
LTX2 = dict(cross_attention_dim=256, audio_attention_head_dim=64, audio_cross_attention_dim=128)
WIDE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("wan", "vace", "skyreels", "chronoedit", "anyflow"), OF_128),
    **dict.fromkeys(("hunyuan", "hunyuan15", "framepack", "motif"), HUNYUAN),
    **dict.fromkeys(("cogvideox", "consisid", "easyanimate"), OF_64),
    "animate": OF_128 | dict(inject_face_latents_blocks=1),
    "mochi": OF_128 | dict(pooled_projection_dim=192),
    "cosmos": OF_128 | dict(max_size=(8, 32, 48)),
    "cosmos3": dict(head_dim=128, hidden_size=512, rope_axes_dim=(24, 20, 20)),
    "helios": OF_128 | dict(rope_dim=(44, 42, 42)),
    "minimax_h3": OF_128 | dict(hidden_size=192, rope_freq_dim=16),
    "ltx": OF_64 | dict(cross_attention_dim=128),
    "ltx2": OF_128 | LTX2,
    "allegro": dict(attention_head_dim=96, cross_attention_dim=192),
    "kandinsky5": dict(model_dim=128, axes_dims=(16, 24, 24)),
    "kandinsky6": dict(model_dim=256, axes_dims=(32, 48, 48)),
}
"""What the models differ in from those of the tests, by the name that these have there."""
SPARSE = VSA(sparsity=0.8)
BANDS: dict[float, Any] = {0.85: Dense(), 0.5: SPARSE, 0: VSA(sparsity=0.9)}
NABLA = dict(attention_type="nabla", attention_P=0.8)
NABLA |= dict(attention_wT=3, attention_wH=3, attention_wW=3)


class Layer(NamedTuple):
    """A model's attention layer, and what it was called with."""

    attn: Any
    met: Any
    given: tuple[tuple[Any, ...], dict[str, Any]]


def family_case(
    name: str,
    method: Any = SPARSE,
    timesteps: tuple[float | None, ...] = (None,),
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """The mean square of what each layer says, called at these timesteps (None: the batch's own),
    of a model that is made sparse by a method, or by a function of it."""

    def case(device: torch.device) -> Built:
        from flexsparse.diffusers import sparsify

        torch.compiler.reset()  # all models are one function in different closures
        layers: list[Layer] = []
        for timestep in timesteps:
            with unset_fake_temporarily():
                model, batch = _wide(name, changes or {})
                if timestep is not None:
                    batch["timestep"] = torch.full_like(batch["timestep"], timestep)
                made: Any = method(model) if callable(method) else method
                sparsify(model, made, **options)
                found = list(_called(model, batch))
            layers += [_on(device, layer) for layer in found]
        return _squares(layers)

    return case


def _wide(name: str, changes: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A model in bf16, as ``from_pretrained`` loads it, and what it is called with."""
    if str(SMALL) not in sys.path:
        sys.path.insert(0, str(SMALL))
    small = import_module("small_models").SMALL[name]
    narrow: Any = small.build()
    ones = {count: 1 for count in ONE if count in narrow.config}
    model = type(narrow)(**{**narrow.config, **ones, **WIDE[name], **changes})
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, parameter in model.named_parameters():
        if not kept & set(path.split(".")):
            parameter.data = parameter.data.bfloat16()
    batch = small.batch(GRID, 0)
    if "image_rotary_emb" in batch:  # in fp32, and as wide as a head
        factor = WIDE[name]["attention_head_dim"] // narrow.config.attention_head_dim
        batch["image_rotary_emb"] = tree_map(
            lambda x: x.repeat(1, factor) if x.is_floating_point() else x, batch["image_rotary_emb"]
        )
    table = "image_rotary_emb"
    return model, {x: y if x == table else tree_map(_in_bf16, y) for x, y in batch.items()}


def _in_bf16(x: Any) -> Any:
    return x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x


def _called(model: nn.Module, batch: dict[str, Any]) -> Iterator[Layer]:
    """A layer of each kind, as the model calls it."""
    from flexsparse.diffusers.families import family_of

    found: dict[str, Layer] = {}
    for name, attn in family_of(model).layers(model):

        def note(attn: Any, args: Any, kwargs: Any, kind: str = re.sub(r"\d+", "*", name)) -> None:
            found.setdefault(kind, Layer(attn, attn.processor.call.met, (args, kwargs)))

        attn.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    for layer in found.values():
        layer.attn._forward_pre_hooks.clear()
        layer.attn._forward_pre_hooks_with_kwargs.clear()
        yield layer


def _on(device: torch.device, layer: Layer) -> Layer:
    """The same with tensors there, which hold no data."""

    def there(x: Any) -> Any:
        return torch.empty(x.shape, dtype=x.dtype, device=device) if isinstance(x, Tensor) else x

    for module in layer.attn.modules():
        for kind in (module._parameters, module._buffers):
            for name, x in kind.items():
                if x is not None:
                    kind[name] = nn.Parameter(there(x)) if isinstance(x, nn.Parameter) else there(x)
    given = tree_map(there, layer.given)
    for x in tree_leaves(given):
        if isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.ndim == 3:
            x.requires_grad_()
    packed = layer.met.packed
    packed = packed and packed._replace(rows=there(packed.rows))
    return Layer(layer.attn, layer.met._replace(packed=packed), given)


def _squares(layers: list[Layer]) -> Built:
    leaves, spec = tree_flatten([layer.given for layer in layers])
    tensors = [x for x in leaves if isinstance(x, Tensor)]

    def loss(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        filled = [next(given) if isinstance(x, Tensor) else x for x in leaves]
        total: Any = 0
        for layer, (args, kwargs) in zip(layers, tree_unflatten(filled, spec)):
            layer.attn.processor.call.met = layer.met
            for out in tree_leaves(layer.attn(*args, **kwargs)):
                total = total + out.float().square().mean()
        return total

    return loss, tensors


def _nabla(model: nn.Module) -> VSA:
    from flexsparse.diffusers import nabla

    return nabla(model)


FAMILIES: dict[str, Case] = {
    **{f"diffusers_{name}_layer": family_case(name) for name in WIDE},
    "diffusers_kandinsky5_nabla": family_case("kandinsky5", _nabla, changes=NABLA),
    "diffusers_wan_bands": family_case("wan", BANDS, (900, 600, 100)),
    "diffusers_cogvideox_dense": family_case("cogvideox", dense_above=0.85, dense_layers=(0,)),
}
