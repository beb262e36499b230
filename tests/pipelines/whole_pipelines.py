"""Small random pipelines of the families that small_pipelines.py leaves out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as Euler
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from small_pipelines import cogvideox_vae, hunyuan_video_texts, hunyuan_video_vae, wan_vae
from torch import Tensor, nn
from whole_parts import (
    Parts,
    Texts,
    allegro_vae,
    clip,
    cosmos3_parts,
    cosmos_vae,
    edm,
    hunyuan15_texts,
    hunyuan15_vae,
    kandinsky5_texts,
    kandinsky6_texts,
    ltx2_audio_vae,
    ltx2_connectors,
    ltx2_vae,
    ltx2_vocoder,
    magvit_vae,
    masked,
    mochi_vae,
    none,
    parts,
    plain,
    siglip,
    sized,
    unipc,
)

Size = tuple[int, int, int]


def flow(scheduler: Any) -> Tensor:
    """The noise levels of a sampler's steps: sigma of ``(1 - sigma) * data + sigma * noise``."""
    return scheduler.sigmas[:-1]


def of_edm(scheduler: Any) -> Tensor:
    """Of ``data + sigma * noise``."""
    return scheduler.sigmas[:-1] / (1 + scheduler.sigmas[:-1])


def upside_down(scheduler: Any) -> Tensor:
    return 1 - scheduler.sigmas[:-1]


def of_timesteps(scheduler: Any) -> Tensor:
    return scheduler.timesteps / 1000


@dataclass(frozen=True)
class Whole:
    """A pipeline with all that it is made of, but what encodes texts.

    Attributes:
        parts: its components beside the transformer.
        texts: what stands for a prompt in its call; empty for one that takes texts alone.
        options: of the command, beside these; of the files IMAGE and VIDEO.
        levels: the noise levels of the steps that its sampler has just made, by its own sigmas.
        frames: of the clip, where they are not those of its size.
    """

    cls: Any
    model: Callable[[], nn.Module]
    parts: Callable[[], Parts]
    texts: Callable[[], Texts] = plain()
    size: Size = (9, 48, 80)
    encoders: tuple[str, ...] = ("text_encoder", "tokenizer")
    options: tuple[str, ...] = ()
    levels: Callable[[Any], Tensor] = flow
    frames: int | None = None

    def build(self) -> Any:
        torch.manual_seed(0)
        parts = self.parts() | {"transformer": self.model()}
        return self.cls(**dict.fromkeys(self.encoders), **parts)


TWO = "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"
IMAGE = "--image", "IMAGE"
VIDEOS = "--video", "pose_video=VIDEO", "face_video=VIDEO"
HISTORY = "--call", "num_latent_frames_per_chunk=3", "history_sizes=[4,2,1]"
_ltx2 = dict(audio_vae=ltx2_audio_vae, connectors=ltx2_connectors, vocoder=ltx2_vocoder)
_guided = dict(guider=diffusers.ClassifierFreeGuidance)
_dumb = dict(audio_vae=none, vocoder=none)
_flow_map = partial(diffusers.FlowMapEulerDiscreteScheduler, shift=5.0)
_trailing = partial(diffusers.CogVideoXDPMScheduler, timestep_spacing="trailing")
WHOLE = {
    "ltx2": Whole(
        diffusers.LTX2Pipeline, sized("ltx2"), parts(ltx2_vae, **_ltx2), masked, (5, 32, 96)
    ),
    "kandinsky5": Whole(
        diffusers.Kandinsky5T2VPipeline,
        sized("kandinsky5"),
        parts(hunyuan_video_vae),
        kandinsky5_texts,
        (5, 64, 64),
        TWO,
    ),
    "hunyuan15": Whole(
        diffusers.HunyuanVideo15Pipeline,
        sized("hunyuan15", in_channels=9),
        parts(hunyuan15_vae, **_guided),
        hunyuan15_texts,
        (5, 48, 80),
        TWO,
        ("--guidance", "1"),
    ),
    "mochi": Whole(
        diffusers.MochiPipeline,
        sized("mochi", in_channels=12, out_channels=None),
        parts(mochi_vae, partial(Euler, invert_sigmas=True)),
        masked,
        (7, 48, 80),
        levels=upside_down,
    ),
    "cosmos": Whole(
        diffusers.CosmosTextToWorldPipeline,
        sized("cosmos", extra_pos_embed_type="learnable"),
        parts(cosmos_vae, edm),
        size=(9, 64, 96),
        levels=of_edm,
    ),
    "cosmos2": Whole(
        diffusers.Cosmos2VideoToWorldPipeline,
        sized("cosmos", in_channels=5),
        parts(wan_vae, partial(Euler, use_karras_sigmas=True)),
        options=IMAGE,
        levels=of_edm,
    ),
    "cosmos2_5": Whole(
        diffusers.Cosmos2_5_PredictBasePipeline,
        sized("cosmos", in_channels=5),
        parts(wan_vae, unipc(use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01)),
    ),
    "animate": Whole(
        diffusers.WanAnimatePipeline,
        sized("animate", image_dim=8),
        parts(wan_vae, unipc(flow_shift=3.0), **clip()),
        options=(*IMAGE, *VIDEOS),
    ),
    "skyreels": Whole(
        diffusers.SkyReelsV2Pipeline, sized("skyreels"), parts(wan_vae, unipc(flow_shift=8.0))
    ),
    "skyreels_forcing": Whole(
        diffusers.SkyReelsV2DiffusionForcingPipeline,
        sized("skyreels"),
        parts(wan_vae, unipc(flow_shift=8.0)),
        options=("--call", "ar_step=1", "causal_block_size=1"),
    ),
    "chronoedit": Whole(
        diffusers.ChronoEditPipeline,
        sized("chronoedit", in_channels=12, image_dim=8),
        parts(wan_vae, **clip()),
        size=(5, 48, 80),
        options=IMAGE,
    ),
    "framepack": Whole(
        diffusers.HunyuanVideoFramepackPipeline,
        sized("framepack"),
        parts(hunyuan_video_vae, **siglip()),
        lambda: {name: x[:1] for name, x in hunyuan_video_texts().items()},
        (5, 48, 80),
        TWO,
        (*IMAGE, "--call", "latent_window_size=2"),
        frames=9,
    ),
    "kandinsky6": Whole(
        diffusers.Kandinsky6TI2VAPipeline,
        sized("kandinsky6"),
        parts(hunyuan_video_vae, **_dumb),
        kandinsky6_texts,
        (5, 64, 64),
        TWO,
        ("--call", "sample_audio=false"),
    ),
    "cosmos3": Whole(
        diffusers.Cosmos3OmniPipeline,
        sized("cosmos3"),
        cosmos3_parts,
        dict,
        encoders=(),
        options=("--call", "use_system_prompt=false"),
    ),
    "allegro": Whole(
        diffusers.AllegroPipeline,
        sized("allegro"),
        parts(allegro_vae, diffusers.EulerAncestralDiscreteScheduler),
        masked,
        (24, 128, 128),
        levels=of_timesteps,
    ),
    "anyflow": Whole(diffusers.AnyFlowPipeline, sized("anyflow"), parts(wan_vae, _flow_map)),
    "consisid": Whole(
        ConsisIDPipeline,
        sized("consisid", in_channels=8),
        parts(cogvideox_vae, _trailing),
        plain(7),
        options=IMAGE,
        levels=of_timesteps,
    ),
    "easyanimate": Whole(
        diffusers.EasyAnimatePipeline, sized("easyanimate"), parts(magvit_vae), masked
    ),
    "helios": Whole(
        diffusers.HeliosPipeline,
        sized("helios"),
        parts(wan_vae, partial(diffusers.HeliosScheduler, stages=1)),
        options=HISTORY,
    ),
    "motif": Whole(
        diffusers.MotifVideoPipeline,
        sized("motif", in_channels=9),
        parts(wan_vae, feature_extractor=none, **_guided),
        masked,
    ),
}
