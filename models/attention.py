"""The attention slot of the models here, see `flexsparse.slots`: `attention=VSA(sparsity=0.875)`."""

from flexsparse.slots import BSA, VSA, Dense, Slot

__all__ = ["BSA", "VSA", "Dense", "Slot"]
