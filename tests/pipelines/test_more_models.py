"""What is particular to some models: what they refuse, noise levels, histories in the grid."""

import pytest
import torch
from small import randn
from small_models import SMALL, run

from flexsparse.diffusers import BSA, VSA, restore, sparsify
from flexsparse.diffusers.families import family_of

GRID = 2, 4, 5
ALL = VSA(sparsity=0.0, tile=(1, 2, 3))


def sparse(name):
    model = SMALL[name].model(0)
    sparsify(model, VSA(sparsity=0.5, tile=(1, 2, 3)))
    return model, SMALL[name].batch(GRID, 0)


def test_causal_blocks_are_refused():
    model, batch = sparse("skyreels")
    model._set_ar_attention(2)
    with pytest.raises(ValueError, match="num_frame_per_block=2 frames.* causal_block_size=1"):
        run(model, batch)
    model._set_ar_attention(1)
    run(model, batch)


def test_a_time_for_each_frame_is_taken():
    """SkyReels' diffusion forcing, Cosmos' conditions."""
    forced = dict(enable_diffusion_forcing=True, timestep=torch.tensor([[100, 300], [300, 700]]))
    frames = dict(timestep=torch.tensor([0.1, 0.3]).view(1, 1, 2, 1, 1).repeat(2, 1, 1, 1, 1))
    for name, given in (("skyreels", forced), ("cosmos", frames)):
        model, batch = SMALL[name].model(0), SMALL[name].batch(GRID, 0) | given
        dense = run(model, batch)
        sparsify(model, ALL)
        torch.testing.assert_close(run(model, batch), dense)


@pytest.mark.parametrize("name", ["mochi", "motif"])
def test_text_with_holes_is_refused(name):
    model, batch = sparse(name)
    mask = batch["encoder_attention_mask"].clone()
    mask[1, 4] = 0
    with pytest.raises(ValueError, match=r"before the end of text \[False, True\]"):
        run(model, batch | dict(encoder_attention_mask=mask))


def test_a_text_of_no_words_is_none():
    """As MochiPipeline gives it for an empty prompt."""
    model, batch = SMALL["mochi"].model(0), SMALL["mochi"].batch(GRID, 0)
    mask = torch.zeros_like(batch["encoder_attention_mask"], dtype=torch.bool)
    mask[1, :4] = True
    batch |= dict(encoder_attention_mask=mask)
    dense = run(model, batch)
    sparsify(model, ALL)
    torch.testing.assert_close(run(model, batch), dense)


def test_tokens_in_no_grid_are_refused():
    model, batch = sparse("cosmos3")
    places = batch["vision_sequence_indexes"]
    with pytest.raises(ValueError, match=r"not 7 to 46, as of a video \(2, 4, 5\) right after"):
        run(model, batch | dict(vision_sequence_indexes=places.flip(0)))
    with pytest.raises(ValueError, match=r"called with 2 videos.*: give one"):
        run(model, batch | dict(vision_token_shapes=[(1, 4, 5)] * 2))
    attn = model.layers[0].self_attn
    attn.register_forward_pre_hook(lambda module, args: (args[0], args[1][:36], args[2]))
    with pytest.raises(ValueError, match=r"36 tokens of video, but the call's grid \(2, 4, 5\)"):
        run(model, batch)
    model, batch = sparse("framepack")
    with pytest.raises(ValueError, match=r"\[2, 4, 1, 8, 8\] and hidden_states .* differ in size"):
        run(model, batch | dict(latents_clean=randn(0, 2, 4, 1, 8, 8)))


def test_gates_are_as_wide_as_the_queries():
    """Cosmos 3's heads need not make up the width of the input."""
    model = type(SMALL["cosmos3"].build())(**SMALL["cosmos3"].build().config | dict(head_dim=8))
    batch = SMALL["cosmos3"].batch(GRID, 0)
    dense = run(model.eval(), batch)
    sparsify(model, ALL)
    torch.testing.assert_close(run(model, batch), dense)


@pytest.mark.parametrize("name", ["framepack", "helios"])
def test_history_of_the_videos_size_is_part_of_its_grid(name):
    """Helios' is of another in the first stages of a pyramid."""
    model, batch = sparse(name)
    call = next(m.processor.call for m in model.modules() if hasattr(m, "slot"))
    grids, own = [], call._tile_and_rows
    call._tile_and_rows = lambda grid, text: grids.append((grid, text)) or own(grid, text)
    run(model, batch)
    text, _ = SMALL[name].beside(GRID)
    assert set(grids) == {(GRID, text)}
    if name == "helios":
        grids.clear()
        smaller = dict(hidden_states=batch["hidden_states"][..., :4, :6])
        found = run(model, batch | smaller)
        assert set(grids) == {((1, 2, 3), 20 + text)}
        sparsify(model, ALL)
        found = run(model, batch | smaller)
        restore(model)
        torch.testing.assert_close(found, run(model, batch | smaller))


def test_the_scale_of_helios_history_has_its_gradient():
    small, found = SMALL["helios"], []
    model, batch = small.model(0, torch.float64), small.batch(GRID, 0)
    scales = [block.attn1.history_key_scale.requires_grad_() for block in model.blocks]
    for change in (None, ALL):
        if change is not None:
            sparsify(model, change)
        found.append(torch.autograd.grad(run(model, batch).square().mean(), scales))
    torch.testing.assert_close(found[1], found[0])


def test_one_sample_of_framepack_brings_its_text_alone():
    small, batch = SMALL["framepack"], SMALL["framepack"].batch(GRID, 0)
    one = {n: x[:1] if len(x) == 2 and "indices" not in n else x for n, x in batch.items()}
    model = small.model(0)
    dense = run(model, one)
    sparsify(model, ALL)
    torch.testing.assert_close(run(model, one), dense)


def test_hunyuan_video_15_from_text_alone():
    """It hides the picture from attention."""
    small = SMALL["hunyuan15"]
    batch = small.batch(GRID, 0) | dict(image_embeds=torch.zeros(2, 3, 10))
    model = small.model(0)
    dense = run(model, batch)
    sparsify(model, BSA(keep=1.0, sparsity=0.0, tile=(1, 2, 3)))
    torch.testing.assert_close(run(model, batch), dense)


def test_the_decoder_of_motif_video_stays_dense():
    model, _ = sparse("motif")
    assert [hasattr(b.attn, "slot") for b in model.single_transformer_blocks] == [True, False]


def test_noise_levels_are_what_pipelines_hand_over():
    from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    reverse = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    reverse.set_timesteps(5)
    levels = family_of(SMALL["mochi"].build()).noise(reverse.timesteps)
    torch.testing.assert_close(levels, 1 - reverse.sigmas[:-1].double())
    assert levels[0] > 0.99

    edm = EDMEulerScheduler()  # of Cosmos 1
    edm.set_timesteps(5)
    model = SMALL["cosmos"].build()
    assert family_of(model).noise(torch.tensor([0.25])).item() == 0.25
    model.register_to_config(extra_pos_embed_type="learnable")  # as of the first
    sigmas = edm.sigmas[:-1].double()
    levels = family_of(model).noise(edm.timesteps)
    torch.testing.assert_close(levels, sigmas / (sigmas + 1), rtol=1e-6, atol=0)
