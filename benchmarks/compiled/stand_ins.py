"""What ``pretend.py`` puts in the place of torch's and Triton's questions to a GPU's driver."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.compiled.chips import Chip

WARP = 32


def properties(chip: Chip) -> SimpleNamespace:
    """As ``torch.cuda.get_device_properties`` has them."""
    return SimpleNamespace(
        name=chip.name,
        major=chip.major,
        minor=chip.minor,
        multi_processor_count=chip.processors,
        total_memory=139 << 30,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=WARP,
        gcnArchName="",
        L2_cache_size=chip.cache,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=chip.shared,
        shared_memory_per_multiprocessor=chip.shared + 1024,
    )


def in_torch(chip: Chip) -> None:
    found = properties(chip)
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.get_device_properties = lambda device=None: found
    cuda.get_device_capability = lambda device=None: (chip.major, chip.minor)
    cuda.get_device_name = lambda device=None: chip.name
    cuda.synchronize = lambda device=None: None
    cuda._lazy_init = lambda: None
    cuda._exchange_device = lambda device: 0  # one lambda each: Dynamo tells functions apart
    cuda._maybe_exchange_device = lambda device: 0
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda device="cuda": torch.zeros(16, dtype=torch.uint8)
        module.set_rng_state = lambda state, device="cuda": None
    C: Any = torch._C
    C._cuda_getCurrentRawStream = lambda index: 0
    C._cuda_isCurrentStreamCapturing = cuda.graphs._cuda_isCurrentStreamCapturing = lambda: False
    torch.accelerator.is_available = lambda: False  # Dynamo would ask it for a stream

    from torch._subclasses import fake_tensor

    fake_tensor.init_gpu_context = lambda device: None


def in_dynamo(chip: Chip) -> None:
    import torch._dynamo.config as dynamo
    from torch._dynamo.device_interface import CudaInterface

    dynamo.recompile_limit = 64  # the cases of a kind are one function in different closures
    found = properties(chip)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda device=None: found,
        "get_compute_capability": lambda device=None: 10 * chip.major + chip.minor,
        "exchange_device": lambda device: 0,
        "maybe_exchange_device": lambda device: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
    }
    for name, answer in answers.items():
        setattr(CudaInterface, name, staticmethod(answer))
    worker: Any = CudaInterface.Worker
    worker.get_device_properties = staticmethod(lambda device=None: found)


def in_inductor() -> None:
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.fx_passes import fuse_attention, joint_graph, pad_mm
    from torch._inductor.runtime import triton_helpers

    modules: Any = (fuse_attention, joint_graph)
    for module in modules:  # these set themselves up with real CUDA tensors
        module._sfdp_init = lambda *_: None
    pad_mm._pad_mm_init = lambda *_: None
    inductor.joint_graph_constant_folding = False  # so does this pass
    triton_helpers.set_driver_to_gpu = lambda: None
    inductor.compile_threads = 1
    inductor.fx_graph_cache = False
    functorch.enable_autograd_cache = False
    functorch.force_non_lazy_backward_lowering = True  # no backward runs
    gc.disable()  # a twelfth of the time; what is left over goes with the process
    gc.collect = lambda *_: 0  # type: ignore[method-assign]
    _analyse_a_kernel_once()


def _analyse_a_kernel_once() -> None:
    """Several passes of a compilation ask for the same kernel's intermediate representation, of
    the types of tensors and the values of all else, and for what it reads and writes: a third of
    the time."""
    from torch._higher_order_ops import triton_kernel_wrap

    generate, made = triton_kernel_wrap.generate_ttir, {}

    def once(kernel: Any, given: dict[str, Any], *rest: Any) -> Any:
        kinds = [(name, getattr(x, "dtype", x)) for name, x in given.items()]
        key = kernel, repr(kinds), repr(rest)
        if key not in made:
            made[key] = generate(kernel, given, *rest), set(given)
        found, kept = made[key]
        for name in set(given) - kept:  # a backend's own options, which it takes out
            del given[name]
        return found

    triton_kernel_wrap.generate_ttir = once
    parse, parsed = triton_kernel_wrap.ttir_to_functions, {}

    def parse_once(module: Any) -> Any:
        if id(module) not in parsed:  # with the module, so that no other has its number
            parsed[id(module)] = parse(module), module
        return parsed[id(module)][0]

    triton_kernel_wrap.ttir_to_functions = parse_once


def in_triton(chip: Chip, arch: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    limits = dict(
        max_shared_mem=chip.shared,
        multiprocessor_count=chip.processors,
        warpSize=WARP,
        max_num_regs=65536,
        sm_clock_rate=1980000,
        mem_clock_rate=3201000,
        mem_bus_width=6144,
    )
    pretended: Any = SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=lambda device: limits),
        get_current_target=lambda: GPUTarget("cuda", arch, WARP),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=None: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
    )
    driver.set_active(pretended)
