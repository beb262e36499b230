"""Takes a GPU's measure: ``python -m benchmarks.gpu``."""
