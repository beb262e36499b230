"""Measurements whose decision has been made: the precision of scores, how selections use tiles,
bytes that kernels move. docs/performance.md tells what each decided."""
