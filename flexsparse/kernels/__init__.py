"""Hand-written Triton, one subject a file; each kernel has a plain PyTorch twin elsewhere.

Begin with pool_tiles.py, an example of the order in every file; geometry.py is which tokens a tile
holds.
"""
