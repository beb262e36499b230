"""Wan 2.1 with dense attention, VSA and BSA: ``python -m benchmarks.wan``, begin with run.py."""
