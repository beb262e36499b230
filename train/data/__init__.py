"""Videos as training batches: see `loader.py` first, then `video_folder.py`."""

from train.data.captions import embed_caption
from train.data.digits import MovingDigits
from train.data.loader import ClipStream, VideoDataLoader
from train.data.video_folder import VideoFolder

__all__ = ["ClipStream", "MovingDigits", "VideoDataLoader", "VideoFolder", "embed_caption"]
