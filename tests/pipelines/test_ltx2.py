"""LTX-2 made sparse: what it refuses, and what stays as it is."""

import pytest
import torch
from laws import EPS
from small_models import SMALL, run

from flexsparse.diffusers import VSA, sparsify

GRID = 2, 4, 5


def test_a_call_without_a_grid_is_refused():
    model, batch = SMALL["ltx2"].model(0), SMALL["ltx2"].batch(GRID, 0)
    sparsify(model, VSA(sparsity=0.5, tile=(1, 2, 3)))
    wanted = run(model, batch)
    for name in ("num_frames", "height", "width"):
        with pytest.raises(ValueError, match="without num_frames, height and width"):
            run(model, batch | {name: None})
    with pytest.raises(ValueError, match=r"46 tokens of .* grid \(2, 4, 6\) has 48"):
        run(model, batch | dict(width=6))
    assert torch.equal(model(*by_place(model, batch)).sample, wanted)


def by_place(model, batch):
    names = type(model).forward.__wrapped__.__code__.co_varnames[1:]
    defaults = dict(fps=24.0)
    last = 1 + max(names.index(name) for name in batch)
    return [batch.get(name, defaults.get(name)) for name in names[:last]]


def test_keys_may_have_a_rotary_table_of_their_own():
    def more(module, args, given):
        cos, sin = given["query_rotary_emb"]
        return args, given | dict(key_rotary_emb=(cos.flip(1), sin.flip(1)))

    model, batch = SMALL["ltx2"].model(0, torch.float64), SMALL["ltx2"].batch(GRID, 0)
    without = run(model, batch)
    for block in model.transformer_blocks:
        block.attn1.register_forward_pre_hook(more, with_kwargs=True)
    dense = run(model, batch)
    sparsify(model, VSA(sparsity=0.0, tile=(1, 2, 3)))
    scale = dense.abs().max()
    assert (run(model, batch) - dense).abs().max() <= EPS * scale
    assert (without - dense).abs().max() > 1000 * EPS * scale


def test_audio_stays_dense():
    """But for what the video tells it."""
    model, batch = SMALL["ltx2"].model(0), SMALL["ltx2"].batch(GRID, 0)
    batch |= dict(isolate_modalities=True)
    dense = model(**batch)
    sparsify(model, VSA(sparsity=0.5, tile=(1, 2, 3)))
    found = model(**batch)
    assert torch.equal(found.audio_sample, dense.audio_sample)
    assert not torch.equal(found.sample, dense.sample)
    layers = {name for name, module in model.named_modules() if hasattr(module, "slot")}
    assert layers == {f"transformer_blocks.{n}.attn1" for n in range(2)}
