"""Measurements whose decision has been made: the precision of scores, how selections use tiles,
bytes that kernels move. docs/results/studies.md tells what each decided."""
