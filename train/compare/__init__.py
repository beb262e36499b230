"""Runs side by side: `python -m train.compare RUN RUN ...`.

Begin with runs.py.
"""
