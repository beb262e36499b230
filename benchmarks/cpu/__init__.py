"""VSA and BSA on a CPU against dense attention: ``python -m benchmarks.cpu``.

Begin with __main__.py: it is all of it.
"""
