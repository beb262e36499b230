"""What sparse attention changes in a clip, as a report: `--compare dense`.

command.py -> both clips, the dense one observed layer by layer (observe.py, share.py) -> results.py
-> metrics.json, pictures (pictures.py) and report.md (report.py).
"""
