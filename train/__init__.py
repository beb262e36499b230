"""The trainer: torchtitan's shape on torchtitan's components.

Read `trainer.py` first, then `flow.py` and `distributed/parallelize.py`; a run is a function in
`configs/`.
"""
