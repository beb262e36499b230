"""Hand-written Triton, one subject a file; each kernel has a plain PyTorch twin elsewhere."""
