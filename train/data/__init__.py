"""Videos as training batches: `loader.py`, then `video_folder.py`; for latents `latents.py`."""

from train.data.captions import embed_caption
from train.data.digits import MovingDigits
from train.data.latent_folder import LatentFolder
from train.data.latent_records import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from train.data.latents import LatentDataLoader
from train.data.loader import VideoDataLoader
from train.data.stream import ClipStream
from train.data.video_folder import VideoFolder

__all__ = [
    "WAN_LATENTS_MEAN",
    "WAN_LATENTS_STD",
    "ClipStream",
    "LatentDataLoader",
    "LatentFolder",
    "MovingDigits",
    "VideoDataLoader",
    "VideoFolder",
    "embed_caption",
]
