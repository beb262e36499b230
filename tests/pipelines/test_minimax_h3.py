"""MiniMax-H3 made sparse: which rows of its packed sequence are a video, and of which grid."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL, minimax_h3_batch, run

from flexsparse.diffusers import VSA, gates_of, load_gates, sparsify
from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.minimax_h3 import minimax_h3_grid

GRID = 2, 4, 5
SPARSE = VSA(sparsity=0.5, tile=(1, 2, 3))
FILE = "diffusion_pytorch_model.safetensors"
PER_ROW = "timestep_indices", "token_tags", "position_ids"
OF_KIND = dict(video="hidden_states", audio="audio_hidden_states", text="encoder_hidden_states")


def moved(batch, places):
    """The same sequence with row i at places[i]."""
    batch = dict(batch)
    for name in PER_ROW:
        batch[name] = torch.empty_like(batch[name]).index_copy(0, places, batch[name])
    return batch | {f"{kind}_indices": places[batch[f"{kind}_indices"]] for kind in OF_KIND}


def sparse():
    model = SMALL["minimax_h3"].model(0, torch.float64)
    sparsify(model, SPARSE)
    with torch.no_grad():
        for gate in gates_of(model).values():
            gate.normal_(std=0.5)
    return model


@pytest.mark.parametrize("last_steps", [False, True])
@pytest.mark.parametrize("anchors", [(), ("first",), ("last",), ("last", "first")], ids=str)
@pytest.mark.parametrize("grid", [GRID, (1, 3, 3), (3, 1, 4)], ids=str)
def test_the_video_that_is_generated_is_found_in_what_the_pipeline_packs(grid, anchors, last_steps):
    batch = minimax_h3_batch(grid, 0, anchors)
    if last_steps:  # in which keyframes have the video's timestep
        batch["timestep_indices"][batch["video_indices"]] = 0
    found, rows, parts = minimax_h3_grid(None, **batch)
    total, (t, h, w) = len(batch["token_tags"]), grid
    keyframes = len(anchors) * h * w
    assert parts == ((5, keyframes, 4) if anchors else (5, 4))
    assert found == grid
    assert torch.equal(rows[: t * h * w], torch.arange(total - t * h * w, total))
    assert torch.equal(rows[t * h * w :], torch.arange(total - t * h * w))


def test_rows_may_lie_anywhere_in_the_sequence():
    """Video before audio and text, its rows in any order, and what is handed over with them."""
    model, batch = sparse(), minimax_h3_batch(GRID, 0, ("last",))
    wanted = run(model, batch)
    total, video = len(batch["token_tags"]), 40
    generator = torch.Generator().manual_seed(0)
    shuffled = video - 1 - torch.randperm(video, generator=generator)
    places = torch.cat((torch.randperm(total - video, generator=generator) + video, shuffled))
    other = moved(batch, places)
    assert torch.equal(minimax_h3_grid(None, **other).rows[:video], places[-video:])
    torch.testing.assert_close(run(model, other), wanted, rtol=0, atol=1e-12)


def test_rows_may_be_handed_over_in_any_order():
    model, batch = sparse(), minimax_h3_batch(GRID, 0)
    wanted = run(model, batch)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = dict(hidden_states=batch["hidden_states"][:, order])
    other |= dict(video_indices=batch["video_indices"][order])
    found, due = (minimax_h3_grid(None, **given) for given in (batch | other, batch))
    assert torch.equal(found.rows, due.rows)
    torch.testing.assert_close(run(model, batch | other), wanted[:, order], rtol=0, atol=1e-12)


def test_a_sequence_without_a_grid_is_refused():
    model, batch = sparse(), minimax_h3_batch(GRID, 0)
    wrong = batch["position_ids"].clone()
    wrong[-1, 0] += 1
    for given, words in [
        (dict(position_ids=wrong), r"last 40 rows of video .* have \(3, 4, 5\) position ids"),
        (dict(position_ids=batch["position_ids"] * 0), r"\(1, 1, 1\) .* no grid of 40 tokens"),
        (dict(attention_kwargs=dict(grid=(4, 2, 5))), r"grid=\(4, 2, 5\), but .* \(2, 4, 5\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            run(model, batch | given)
    gap = batch["timestep_indices"].clone()
    gap[-7] = 1 - gap[-7]  # a row of another noise level, which is none of the video's
    with pytest.raises(ValueError, match="last 6 rows of video"):
        run(model, batch | dict(timestep_indices=gap))
    assert run(model, batch).isfinite().all()


def test_fastvideos_gates_are_found_under_their_names(tmp_path):
    """Of a model, without biases, and of an adapter."""
    model = SMALL["minimax_h3"].model(0)
    model.save_pretrained(tmp_path)
    layer = "transformer_blocks.{}.attn.to_gate_compress."
    theirs = {layer.format(n) + "weight": torch.randn(32, 24) for n in range(2)}
    save_file(load_file(tmp_path / FILE) | theirs, tmp_path / FILE, {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    sparsify(loaded, SPARSE)
    adapter = {name.replace(".weight", ".set_weight"): 2 * x for name, x in theirs.items()}
    save_file(adapter, tmp_path / "adapter.safetensors")
    for factor in (1, 2):
        if factor == 2:
            load_gates(loaded, tmp_path / "adapter.safetensors")
        for n, block in enumerate(loaded.transformer_blocks):
            gate = block.attn.slot.gate_coarse
            assert torch.equal(gate.weight, factor * theirs[layer.format(n) + "weight"])
            assert not gate.bias.any()


def test_its_timesteps_go_from_noise_to_data():
    noise = family_of(SMALL["minimax_h3"].build()).noise
    assert torch.equal(noise(torch.tensor([0.25, 1.0, 0.5])), torch.tensor([0.75]).double())
