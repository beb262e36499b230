"""Modules that a model holds: VSA with its gates, BSA, and what a layer of your own derives from.

Begin with modules.py; layer.py is what shards of a sequence ask of a layer, ulysses.py moves them.
"""

from flexsparse.nn.layer import AttentionLayer
from flexsparse.nn.modules import BSA, VSA, Choice

__all__ = ["BSA", "VSA", "AttentionLayer", "Choice"]
