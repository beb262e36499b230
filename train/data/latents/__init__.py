"""Latents on disk as training batches, from FastVideo's parquet records.

Begin with loader.py.
"""
