"""Clips of any diffusers pipeline of videos: `python -m flexsparse.diffusers.generate`.

options.py -> folder.py and checks.py, before any long work -> pipeline.py, which loads -> clips.py,
which samples, each part timed (timing.py) -> clip.py, the file. compare/ measures a clip against
its dense twin, sweep.py several densities.
"""
