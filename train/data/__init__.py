"""Videos as training batches: `loader.py`, then `sources/` and `order/`; for latents `latents/`."""

from train.data.latents.folder import LatentFolder
from train.data.latents.loader import LatentDataLoader
from train.data.latents.records import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from train.data.loader import VideoDataLoader
from train.data.order.stream import ClipStream
from train.data.sources.captions import embed_caption
from train.data.sources.digits import MovingDigits
from train.data.sources.video_folder import VideoFolder

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
