"""Measurements whose decision has been made: the precision of scores and how selections use
tiles (docs/results/studies.md), torch's compiled FlexAttention for CPUs (docs/design.md).

Begin with selections.py.
"""
