"""Videos from a Wan 2.1 checkpoint, dense or sparse: `python -m models.wan.generate --help`.

options -> checks -> model -> sample (sampling.py) -> VAE -> MP4 (clip.py), each timed (clock.py)
"""
