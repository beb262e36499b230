"""VSA and BSA on a CPU against dense attention: ``python -m benchmarks.cpu``."""
