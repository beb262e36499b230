"""What a run leaves behind for people: its folder, history, progress and metrics.

Begin with run_dir.py.
"""
