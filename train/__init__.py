"""The trainer: torchtitan's shape on torchtitan's components.

Read `trainer.py` first, then `parallelize.py` and `flow.py`; a run is a function in `configs/`.
"""
