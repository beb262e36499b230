"""From scores between tiles to a BlockMask: which tiles each query tile attends to.

Begin with choose.py (scores and a rule), then rules.py, where a rule of your own would stand;
block_mask.py makes FlexAttention's mask of the choice.
"""
