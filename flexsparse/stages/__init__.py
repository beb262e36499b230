"""What stands around the fine stage: pooled tiles, the coarse output, gates, pruned queries.

Begin with pooling.py, then coarse.py and gates.py for VSA, windows.py and queries.py for BSA. Each
is plain PyTorch, the twin of a kernel in flexsparse/kernels.
"""
