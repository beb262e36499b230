"""What the GPU tests share: tensors on the device, and an output with its gradients."""

import torch


def draw(tiling, count, dim, dtype, heads=3):
    """Raster tensors [2, heads, tokens, dim] that require grad."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (2, heads, tiling.tokens, dim)
    drawn = [torch.randn(shape, device="cuda", generator=generator) for _ in range(count)]
    return [x.to(dtype).requires_grad_() for x in drawn]


def with_gradients(compute, inputs):
    out = compute(*inputs)
    generator = torch.Generator("cuda").manual_seed(1)
    grad = torch.randn(out.shape, device="cuda", generator=generator).to(out.dtype)
    return out, *torch.autograd.grad(out, inputs, grad)
