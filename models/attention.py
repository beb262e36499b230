"""The attention slot of models, `attention=VSA(sparsity=0.875)`: see `flexsparse.slots`, and
`flexsparse.by_noise` for one whose density follows the noise level."""

from flexsparse.by_noise import ByNoise
from flexsparse.slots import BSA, VSA, Dense, Slot

__all__ = ["BSA", "VSA", "ByNoise", "Dense", "Slot"]
