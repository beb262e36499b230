"""A whole pipeline with a sparse transformer: clips, saving, LoRA."""

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from peft import LoraConfig
from small_models import SMALL, run

from flexsparse.diffusers import BSA, VSA, restore, sparsify

SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2))
NO_TEXT = dict(text_encoder=None, tokenizer=None)


def small_pipeline():
    torch.manual_seed(0)
    sizes = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[])
    vae = AutoencoderKLWan(
        **sizes,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    parts = dict(vae=vae, scheduler=FlowMatchEulerDiscreteScheduler())
    return WanPipeline(**NO_TEXT, **parts, transformer=SMALL["wan"].model(0))


def clip(pipe, height=32, output_type="latent"):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    positive, negative = torch.randn(2, 1, 6, 8, generator=generator).unbind()
    texts = dict(prompt_embeds=positive, negative_prompt_embeds=negative)
    size = dict(height=height, width=48, num_frames=5, num_inference_steps=2)
    return pipe(**texts, **size, generator=generator, output_type=output_type).frames


def test_a_pipeline_makes_clips_of_any_size_and_is_saved_and_restored(tmp_path):
    pipe = small_pipeline()
    dense = clip(pipe)
    sparsify(pipe.transformer, SPARSE)
    with torch.no_grad():
        for block in pipe.transformer.blocks:
            block.attn1.slot.gate_coarse.weight.normal_(std=0.1)
    sparse = clip(pipe)
    assert not torch.equal(sparse, dense)
    assert clip(pipe, height=64, output_type="pt").shape == (1, 5, 3, 64, 48)
    pipe.save_pretrained(tmp_path)
    loaded = WanPipeline.from_pretrained(tmp_path, **NO_TEXT)
    dense_again = clip(loaded)  # other memory, and with it other rounding in its last digits
    sparsify(loaded.transformer, SPARSE)
    gates = pipe.transformer.state_dict()
    assert all(torch.equal(x, gates[n]) for n, x in loaded.transformer.state_dict().items())
    assert not torch.equal(clip(loaded), dense_again)
    for one, before in ((pipe, dense), (loaded, dense_again)):
        restore(one.transformer)
        assert torch.equal(clip(one), before)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", [SPARSE, BSA(keep=0.5)], ids=["vsa", "bsa"])
@pytest.mark.parametrize("first", ["lora", "sparsify"])
def test_lora_works_whichever_comes_first(name, method, first, tmp_path):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = small.model(0)
    sparsify(model, method)
    base = run(model, batch)
    model.add_adapter(lora)
    adapted = run(model, batch)
    assert not torch.equal(adapted, base)
    model.disable_adapters()
    assert torch.equal(run(model, batch), base)
    model.enable_adapters()
    adapted.square().mean().backward()
    trained = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("lora_A" in n and "to_q" in n for n in trained)
    model.save_lora_adapter(tmp_path)

    other = small.model(0)
    if first == "sparsify":
        sparsify(other, method)
    file = dict(weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    other.load_lora_adapter(tmp_path, prefix=None, **file)
    if first == "lora":
        sparsify(other, method)
    assert torch.equal(run(other, batch), adapted)
    restore(other)
    other.unload_lora()
    assert torch.equal(run(other, batch), run(small.model(0), batch))
