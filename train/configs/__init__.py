"""Runs: functions that return a full config, one file for each folder of `models/`.

Begin with video_dit.py.
"""
