"""Weights on their way in and out: how they start, checkpoints, their average, LoRA.

Begin with initial.py; checkpoint.py is what makes a killed run go on.
"""
