"""Sparse attention for video diffusion: dynamic BlockMasks for FlexAttention.

>>> tiling = VideoTiling(video=(4, 8, 8), tile=(2, 4, 4))
>>> q, k, v = (tiling.to_tiles(torch.randn(1, 2, tiling.tokens, 16)) for _ in range(3))
>>> mask = vsa_mask(q, k, tiling, top_k=2)
>>> tiling.from_tiles(flex_attention(q, k, v, block_mask=mask)).shape
torch.Size([1, 2, 256, 16])

Begin with tiling.py, then vsa.py.
"""

from flexsparse.bsa import bsa_attention, bsa_mask
from flexsparse.choice.places import FirstFrames, Neighbourhood, OwnTile
from flexsparse.choice.rules import Mass, Threshold, TopK
from flexsparse.choice.scaled import Scaled
from flexsparse.engines.flex import flex_attention
from flexsparse.stages.queries import KeptQueries, prune_queries, restore_queries
from flexsparse.tiling import VideoTiling
from flexsparse.vsa import vsa_attention, vsa_mask

__all__ = [
    "FirstFrames",
    "KeptQueries",
    "Mass",
    "Neighbourhood",
    "OwnTile",
    "Scaled",
    "Threshold",
    "TopK",
    "VideoTiling",
    "bsa_attention",
    "bsa_mask",
    "flex_attention",
    "prune_queries",
    "restore_queries",
    "vsa_attention",
    "vsa_mask",
]
__version__ = "0.1.0"
