"""Our processors against those they replace, with all that a model can have and be given."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
)
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from laws import assert_accurate
from peft import LoraConfig
from small_models import (
    SMALL,
    Small,
    ltx2,
    ltx2_batch,
    minimax_h3,
    minimax_h3_batch,
    randn,
    run,
)

from flexsparse.diffusers import BSA, VSA, restore, sparsify

GRID = 2, 4, 5
PROJECTIONS = ["to_q", "to_v", "to_query", "to_value"]
LORA = LoraConfig(r=2, target_modules=PROJECTIONS, init_lora_weights=False)


def rebuilt(name: str, cls: Any, given: Callable[[], dict[str, Any]], **changes: Any) -> Small:
    """A family's small model with other settings, and with more in its batch."""
    small = SMALL[name]
    config = {k: v for k, v in small.build().config.items() if not k.startswith("_")}
    batch = lambda grid, seed: small.batch(grid, seed) | given()  # noqa: E731
    return Small(lambda: cls(**config | changes), batch, small.text)


def changed(name: str, **given: Any) -> Small:
    small = SMALL[name]
    return Small(small.build, lambda grid, seed: small.batch(grid, seed) | given, small.text)


def image() -> dict[str, Any]:
    pictures = dict(encoder_hidden_states_image=randn(7, 2, 5, 8))
    return dict(encoder_hidden_states=randn(1, 2, 512, 8), **pictures)


COORDINATES = randn(3, 2, 3, 40).sort(-1).values.contiguous()
REFERENCE_FRAME = dict(
    hidden_states=randn(0, 2, 3, 8, 10, 4),
    visual_rope_pos=(torch.tensor([0, 1, 0]), torch.arange(4), torch.arange(5)),
)
VIDEO_ALONE = dict(hidden_states=randn(0, 2, 40, 8), video_coords=None)
SOME = dict(perturbation_mask=torch.tensor([0.0, 1.0]), spatio_temporal_guidance_blocks=[1])


def ltx2_with(given: dict[str, Any] | None = None, **changes: Any) -> Small:
    batch = lambda grid, seed: ltx2_batch(grid, seed) | (given or {})  # noqa: E731
    return Small(partial(ltx2, **changes), batch, 6)


def keyframes(*anchors: str) -> Small:
    return Small(minimax_h3, partial(minimax_h3_batch, keyframes=anchors), 9 + 20 * len(anchors))


TWO_FRAMES = dict(hidden_states=randn(0, 2, 4, 4, 8, 10))
LAYOUTS = {
    "wan image-to-video": rebuilt(
        "wan", WanTransformer3DModel, image, image_dim=8, added_kv_proj_dim=32
    ),
    "wan time of each token": changed("wan", timestep=torch.arange(80).view(2, 40)),
    "hunyuan token_replace": rebuilt(
        "hunyuan", HunyuanVideoTransformer3DModel, dict, image_condition_type="token_replace"
    ),
    "hunyuan holes": changed("hunyuan", encoder_attention_mask=torch.tensor([[1, 0, 1] * 3] * 2)),
    "cogvideox biases, no rotary": rebuilt(
        "cogvideox",
        CogVideoXTransformer3DModel,
        lambda: dict(image_rotary_emb=None),
        attention_bias=True,
        use_rotary_positional_embeddings=False,
    ),
    "cogvideox 1.5": rebuilt(
        "cogvideox",
        CogVideoXTransformer3DModel,
        lambda: TWO_FRAMES | dict(ofs=torch.tensor([2.0])),
        patch_size_t=2,
        patch_bias=False,
        ofs_embed_dim=8,
    ),
    "ltx coordinates": changed("ltx", video_coords=COORDINATES),
    "ltx scale": changed("ltx", rope_interpolation_scale=(2.0, 3.0, 5.0)),
    "ltx time of each token": changed("ltx", timestep=torch.arange(80).view(2, 40)),
    "minimax_h3 keyframes": keyframes("first", "last"),
    "kandinsky5 scale": changed("kandinsky5", scale_factor=(1.0, 2.0, 3.16)),
    "kandinsky6 reference frame": changed("kandinsky6", **REFERENCE_FRAME),
    "kandinsky6 no audio": changed("kandinsky6", audio_hidden_states=None),
    "ltx2 video alone": ltx2_with(VIDEO_ALONE),
    "ltx2 time of each token": ltx2_with(
        dict(timestep=torch.arange(92).view(2, 46), audio_timestep=torch.tensor([100, 700]))
    ),
    "ltx2 halves, gates of heads": ltx2_with(rope_type="split", gated_attn=True),
    "ltx2 guidance of some": ltx2_with(SOME, perturbed_attn=True, gated_attn=True),
    "ltx2 guidance of all": ltx2_with(
        dict(spatio_temporal_guidance_blocks=[0]), perturbed_attn=True
    ),
} | SMALL


def fused(model: Any) -> None:
    """With fused weights that are no longer those that they were made of."""
    model.fuse_qkv_projections()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".to_qkv." in name:
                p.add_(0.1 * torch.randn_like(p))


def plain(model: Any) -> None: ...


def takes(module: Any, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The output, and the gradient of every parameter that has one."""
    model.zero_grad()
    out = run(model, batch)
    out.square().mean().backward()
    named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"": out.detach()} | {n: g for n, g in named.items() if ".slot." not in n}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", [plain, fused, lambda m: m.add_adapter(LORA)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_with_all_tiles_a_layer_does_what_its_own_processor_does(name, change, after):
    """Projections fused and not, adapters and their scale, conditions of all kinds."""
    small = LAYOUTS[name]
    if change is fused and not hasattr(small.build(), "fuse_qkv_projections"):
        pytest.skip("this model has no such method")
    if change is fused and ("kandinsky" in name or "ltx2" in name):
        pytest.skip("it raises, since projections have other names, or widths")
    if change is fused and after and "cogvideox" in name:
        pytest.skip("it sets processors, which is refused")
    batch = small.batch(GRID, 0)
    model = small.model(0)
    if change not in (plain, fused):
        if not hasattr(model, "add_adapter"):
            pytest.skip("this model has no such method")
        if takes(model, "attention_kwargs"):
            batch |= dict(attention_kwargs=dict(scale=0.5))
    state = torch.get_rng_state()
    if after:
        sparsify(model, VSA(sparsity=0.0, tile=(1, 2, 3)))
        torch.set_rng_state(state)
    change(model)
    if not after:
        dense = gradients(model, batch)
        sparsify(model, VSA(sparsity=0.0, tile=(1, 2, 3)))
    found = gradients(model, batch)
    restore(model)
    if after:
        dense = gradients(model, batch)
    again = gradients(model, batch)
    assert again.keys() == dense.keys() == found.keys()
    assert all(torch.equal(again[n], x) for n, x in dense.items())
    exact = list(gradients(model.double(), batch).values())
    assert_accurate([*found.values()], [[*dense.values()]], exact)


def test_a_processor_that_is_not_known_is_refused():
    class Mine(WanAttnProcessor):
        pass

    model, batch = SMALL["wan"].model(0), SMALL["wan"].batch(GRID, 0)
    model.blocks[1].attn1.set_processor(Mine())
    with pytest.raises(ValueError, match=r"blocks.1.attn1 has a Mine.* set a WanAttnProcessor"):
        sparsify(model, VSA())
    assert not any(hasattr(block.attn1, "slot") for block in model.blocks)
    model.blocks[1].attn1.set_processor(WanAttnProcessor())
    sparsify(model, VSA())
    run(model, batch)
    model.blocks[1].attn1.set_processor(Mine())
    with pytest.raises(ValueError, match=r"blocks.1.attn1 has lost its sparse attention to a Mine"):
        sparsify(model, BSA())
    assert type(model.blocks[1].attn1.processor) is Mine


@pytest.mark.parametrize("name", [n for n in SMALL if n != "cosmos3"])  # which takes no more
def test_an_argument_that_cannot_be_obeyed_is_refused(name):
    small = SMALL[name]
    model, batch = small.model(0), small.batch(GRID, 0)
    sparsify(model, VSA(sparsity=0.5))
    attn = next(m for m in model.modules() if hasattr(m, "slot"))
    text, _ = small.beside(GRID)
    tokens = 40 + text
    names = list(inspect.signature(attn.forward).parameters)
    known = {*names, *inspect.signature(attn.processor.__call__).parameters}
    masks = sorted({"attention_mask", "attn_mask"} & known)
    given = [{mask: torch.zeros(2, 1, tokens, tokens)} for mask in masks]
    if text and name not in ("minimax_h3", "ltx2"):
        given += [dict(attention_mask=torch.zeros(2, 1, 1, tokens))]  # to be added to scores
    elif "encoder_hidden_states" in known:
        given += [dict(encoder_hidden_states=torch.zeros(2, 6, 32))]
    assert given
    for kwargs in given:

        def more(module, args, kw, kwargs=kwargs):
            return (), dict(zip(names, args)) | kw | kwargs

        hook = attn.register_forward_pre_hook(more, with_kwargs=True)
        (argument,) = kwargs
        with pytest.raises(ValueError, match=rf"{argument} \[2, .* cannot obey it"):
            run(model, batch)
        hook.remove()
    assert run(model, batch).isfinite().all()


def test_what_was_fused_since_stays_fused():
    """And sparsify reads it, as the error says that came between."""
    small = SMALL["cogvideox"]
    batch, method = small.batch(GRID, 0), VSA(sparsity=0.0, tile=(1, 2, 2))

    def fuse(model):
        model.fuse_qkv_projections()
        torch.manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".to_qkv." in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)

    dense, model = small.model(0), small.model(0)
    fuse(dense)
    sparsify(model, method)
    fuse(model)
    with pytest.raises(ValueError, match="lost its sparse attention"):
        run(model, batch)
    restore(model)
    assert torch.equal(run(model, batch), run(dense, batch))
    sparsify(model, method)
    torch.testing.assert_close(run(model, batch), run(dense, batch))
