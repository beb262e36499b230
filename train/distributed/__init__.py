"""Many processes: what each of them has of model, clips and rows, and how they find each other.

Begin with parallelize.py.
"""
