"""Models that use the library, a folder each; `attention.py` is the slot that they share.

Begin with video_dit/.
"""
