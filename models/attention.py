"""The attention slot of models, `attention=VSA(sparsity=0.875)`: see `flexsparse.slots`."""

from flexsparse.slots import BSA, VSA, Dense, Slot

__all__ = ["BSA", "VSA", "Dense", "Slot"]
