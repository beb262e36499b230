"""A video diffusion transformer. Read config.py, model.py, blocks.py, rope.py, in this order."""

from models.video_dit.config import VideoDiTConfig
from models.video_dit.model import VideoDiT
from models.video_dit.sizes import debug, dit_1b4, dit_60m, dit_120m, dit_410m

__all__ = ["VideoDiT", "VideoDiTConfig", "debug", "dit_1b4", "dit_60m", "dit_120m", "dit_410m"]
