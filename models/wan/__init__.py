"""Wan 2.1's video diffusion transformer. Read config.py, model.py, blocks.py, rope.py, in order."""

from models.wan.config import WanConfig
from models.wan.model import WanModel
from models.wan.sizes import debug, wan_1_3b, wan_14b, wan_i2v_14b

__all__ = ["WanConfig", "WanModel", "debug", "wan_1_3b", "wan_14b", "wan_i2v_14b"]
