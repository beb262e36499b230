"""VAEs of other families than Wan's: what sizes they take, and how their latents are normalised."""

import diffusers
import pytest
import torch

from train.data.caches.encode import (
    check_clip_size,
    compression,
    encode_clip,
    load_vae,
    normalisation,
)

HUNYUAN = dict(
    latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
)
COGVIDEOX = dict(
    down_block_types=("CogVideoXDownBlock3D",) * 4,
    up_block_types=("CogVideoXUpBlock3D",) * 4,
    block_out_channels=(8, 8, 8, 8),
    latent_channels=4,
    layers_per_block=1,
    norm_num_groups=2,
)
LTX = dict(
    latent_channels=8,
    block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8, 8),
    layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1, 1),
)
VAES = {
    "AutoencoderKLHunyuanVideo": (HUNYUAN, (4, 8), 1 / 0.476986),
    "AutoencoderKLCogVideoX": (COGVIDEOX, (4, 8), 1 / 1.15258426),
    "AutoencoderKLLTXVideo": (LTX, (8, 32), 1.0),
}


@pytest.mark.parametrize("name", VAES)
def test_other_families_are_encoded_too(tmp_path, name):
    options, factors, std = VAES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(diffusers, name)(**options).save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    assert compression(vae) == factors
    t, s = factors
    check_clip_size(vae, t + 1, 2 * s, 4 * s)
    with pytest.raises(ValueError, match=f"takes {t}k \\+ 1 frames and"):
        check_clip_size(vae, t + 2, 2 * s, 4 * s)
    frames = torch.randint(0, 256, (3, t + 1, 2 * s, 4 * s), dtype=torch.uint8)
    latent = encode_clip(vae, frames)
    assert latent.shape == (options["latent_channels"], 2, 2, 4)
    means, deviations = normalisation(vae)
    assert means == [0.0] * latent.shape[0] and deviations == [std] * latent.shape[0]


def test_a_vae_of_pictures_is_refused(tmp_path):
    diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=2
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a AutoencoderKL: give a VAE of videos"):
        load_vae(tmp_path)
