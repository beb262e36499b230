"""Takes a GPU's measure: ``python -m benchmarks.gpu``.

Begin with __main__.py, then cases.py (sizes) and methods.py (what is timed).
"""
