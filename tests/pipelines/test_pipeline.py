"""A whole pipeline with a sparse transformer: clips, saving, LoRA."""

import diffusers
import pytest
import torch
from laws import assert_accurate
from peft import LoraConfig
from small_models import KINDS, SMALL, run
from small_pipelines import PIPELINES

from flexsparse import Mass
from flexsparse.diffusers import BSA, VSA, gates_of, restore, sparsify

SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2))
EVERYTHING = [VSA(top_k=10**6, tile=(2, 2, 4)), BSA(keep=1.0, kv=Mass(1))]
diffusers.utils.logging.set_verbosity_error()  # it says of every cast which modules it keeps
families = pytest.mark.parametrize("name", PIPELINES)


@families
@pytest.mark.parametrize("method", EVERYTHING, ids=["vsa", "bsa"])
def test_with_all_tiles_a_pipeline_makes_the_dense_clips(name, method):
    """Of two sizes, one after the other."""
    small = PIPELINES[name]
    pipe = small.build(SMALL[name].model(0))
    dense = [small.clip(pipe, size) for size in small.sizes]
    sparsify(pipe.transformer, method)
    found = [small.clip(pipe, size) for size in small.sizes]
    restore(pipe.transformer)
    again = [small.clip(pipe, size) for size in small.sizes]
    assert all(torch.equal(x, y) for x, y in zip(again, dense, strict=True))
    pipe.transformer.double()
    exact = [small.clip(pipe, size).double() for size in small.sizes]
    assert_accurate(found, [dense], exact)


@families
def test_a_sparse_pipeline_makes_clips_of_any_size_and_is_saved_and_restored(name, tmp_path):
    small = PIPELINES[name]
    pipe = small.build(SMALL[name].model(0))
    dense = [small.clip(pipe, size) for size in small.sizes]
    sparsify(pipe.transformer, SPARSE)
    with torch.no_grad():
        for gate in gates_of(pipe.transformer).values():
            gate.normal_(std=0.1)
    sparse = [small.clip(pipe, size) for size in small.sizes]
    assert not any(torch.equal(x, y) for x, y in zip(sparse, dense, strict=True))
    frames, height, width = small.sizes[0]
    video = small.clip(pipe, small.sizes[0], "pt")
    assert video.shape == (2, frames, 3, height, width)
    pipe.save_pretrained(tmp_path)
    loaded = small.cls.from_pretrained(tmp_path, **small.no_text)
    dense_again = [small.clip(loaded, size) for size in small.sizes]
    sparsify(loaded.transformer, SPARSE)
    weights = pipe.transformer.state_dict()
    assert all(torch.equal(x, weights[n]) for n, x in loaded.transformer.state_dict().items())
    found = [small.clip(loaded, size) for size in small.sizes]
    for one, before in ((pipe, dense), (loaded, dense_again)):
        restore(one.transformer)
        again = [small.clip(one, size) for size in small.sizes]
        assert all(torch.equal(x, y) for x, y in zip(again, before, strict=True))
    # loaded ones lie elsewhere in memory, and with that round otherwise in their last digits
    pipe.transformer.double()
    sparsify(pipe.transformer, SPARSE)
    pipe.transformer.load_state_dict(weights)
    exact = [small.clip(pipe, size).double() for size in small.sizes]
    assert_accurate(found, [sparse], exact)


def test_a_pipeline_itself_is_refused_with_what_to_give():
    pipe = PIPELINES["wan"].build(SMALL["wan"].model(0))
    with pytest.raises(ValueError, match=r"WanPipeline is a pipeline: .*sparsify\(pipe.transf"):
        sparsify(pipe, SPARSE)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", [SPARSE, BSA(keep=0.5)], ids=["vsa", "bsa"])
@pytest.mark.parametrize("first", ["lora", "sparsify"])
def test_lora_works_whichever_comes_first(name, method, first, tmp_path):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "to_query", "to_key", "to_value"]
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
