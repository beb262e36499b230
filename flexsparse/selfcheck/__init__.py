"""``python -m flexsparse.selfcheck``: is what this machine computes right, gradients included?

For a new GPU or a new version of torch. Kernels that are fast and silently wrong exist, most of all
in backwards; this names those whose results are. (Not run on a GPU yet; each new shape has to be
compiled there.) Every result is compared with fp64, by the rule in accuracy.py; ours must also be
the same bits in a second run, and with NaN in padding. Begin with report.py.
"""

from flexsparse.selfcheck.report import Check, Result, checks, each, run, summary, versions

__all__ = ["Check", "Result", "checks", "each", "run", "summary", "versions"]
