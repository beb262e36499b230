"""Kandinsky 5 with NABLA, as diffusers computes it, by a rule of ours."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from laws import EPS
from small_models import SMALL, kandinsky5, kandinsky5_batch, run

from flexsparse import Mass, Neighbourhood
from flexsparse.diffusers import BSA, VSA, nabla, restore, sparsify
from flexsparse.diffusers.kandinsky import kandinsky6_grid

GRID = 2, 16, 24
CONFIG = dict(attention_P=0.6, attention_wT=1, attention_wH=1, attention_wW=3)


def model_and_batch():
    torch.manual_seed(0)
    model = kandinsky5(attention_type="nabla", **CONFIG).eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    t, h, w = GRID
    near = [x // 8 if x > 2 else x for x in GRID]
    pipeline = pytest.importorskip("diffusers").Kandinsky5T2VPipeline
    latent = torch.empty(1, t, 2 * h, 2 * w, 4)
    maker = mock.Mock(transformer=model, fast_sta_nabla=pipeline.fast_sta_nabla)
    params = pipeline.get_sparse_params(maker, latent, "cpu")
    assert params["sta_mask"].shape[-1] == near[0] * near[1] * near[2]
    return model, kandinsky5_batch(GRID, 0), dict(sparse_params=params)


def dispatched(q, k, v, attn_mask=None, **_):
    if attn_mask is not None and not isinstance(attn_mask, torch.Tensor):  # a BlockMask of 64x64
        tiles = attn_mask.to_dense().bool()
        attn_mask = tiles.repeat_interleave(64, -1).repeat_interleave(64, -2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2)


def test_nabla_is_a_method_of_ours():
    """Whether the tokens come tile by tile, as the pipeline asks for it, or in raster order."""
    model, batch, asked = model_and_batch()
    dense = run(model, batch)
    file = "diffusers.models.transformers.transformer_kandinsky"
    with mock.patch(f"{file}.dispatch_attention_fn", dispatched):
        wanted = run(model, batch | asked)
    sparsify(model, nabla(model))
    scale = wanted.abs().max()
    for given in (batch, batch | asked):
        assert (run(model, given) - wanted).abs().max() <= EPS * scale
    assert (dense - wanted).abs().max() > 1000 * EPS * scale


def test_nabla_compiles_as_a_whole():
    model, batch, asked = model_and_batch()
    model.visual_transformer_blocks = model.visual_transformer_blocks[:1]
    sparsify(model, nabla(model))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(run(compiled, batch | asked), run(model, batch | asked))


@pytest.mark.parametrize(
    "method",
    [
        VSA(sparsity=0.5, tile=(1, 8, 8)),
        VSA(top_k=Mass(0.5) | Neighbourhood((1, 1, 3)), tile=(1, 8, 8)),
        VSA(top_k=Mass(0.6) | Neighbourhood((1, 1, 3)), tile=(1, 8, 4)),
        BSA(kv=Mass(0.6) | Neighbourhood((1, 1, 3)), tile=(1, 8, 8)),
    ],
    ids=str,
)
def test_another_method_than_the_call_asks_for_is_refused(method):
    model, batch, asked = model_and_batch()
    sparsify(model, method)
    with pytest.raises(ValueError, match=r"P=0.6 and .* \[1, 1, 3\] .*: sparsify\(model, nabla"):
        run(model, batch | asked)
    assert run(model, batch).isfinite().all()
    sparsify(model, VSA(top_k=Neighbourhood((1, 1, 3)) | Mass(0.6), tile=(1, 8, 8)))
    assert run(model, batch | asked).isfinite().all()
    restore(model)


def test_a_model_without_nabla_is_named():
    with pytest.raises(ValueError, match="has attention_type='regular', not 'nabla'"):
        nabla(SMALL["kandinsky5"].build())


@pytest.mark.parametrize("places, frames", [([0, 1, 2], 3), ([0, 1, 0], 2), ([5, 7, 8], 3)])
def test_a_reference_frame_that_the_pipeline_appends_is_none_of_the_video(places, frames):
    small = SMALL["kandinsky6"]
    model, batch = small.build(), small.batch((3, 4, 5), 0)
    assert kandinsky6_grid(model, **batch) == (3, 4, 5)
    positions = torch.tensor(places), torch.arange(4), torch.arange(5)
    batch |= dict(visual_rope_pos=positions)
    assert kandinsky6_grid(model, **batch) == (frames, 4, 5)
