"""What sparse attention changes in the clips of a dense Wan 2.1 checkpoint, as a report:
`python -m models.wan.generate.quality --help`.

options -> checks -> model -> both trajectories, step by step (measure.py) -> VAE -> metrics.json,
pictures (pictures.py) and report.md (report.py)
"""
