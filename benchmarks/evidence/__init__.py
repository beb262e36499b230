"""The papers' claims beside ours: each experiment a script, its rows in results/, its page made.

Begin with scale.py (what is trained) and parity.py, the first experiment.
"""
