"""Makes torch and Triton believe in an NVIDIA GPU that is not there.

:func:`start` must come before the process imports torch, and cannot be taken back: use a process
of its own. Tensors hold no data (see ``capture.py``), no kernel is launched. It needs a build of
torch for CUDA and a C compiler, no driver.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.compiled.chips import CHIPS

# What C++ asks. Autograd: the number of devices, and the driver which of them have a context: none
# has; other functions of the driver are looked up at that moment, and never called.
# scaled_dot_product_attention: the compute capability, which stands at these bytes of CUDA 12's and
# 13's cudaDeviceProp.
STUB = """
int devices = 0, properties[2048];
signed char count(void) __asm__("_ZN3c104cuda12device_countEv"); /* c10::cuda::device_count */
signed char count(void) { return devices; }
void *ask(void) __asm__("_ZN2at4cuda26getCurrentDevicePropertiesEv");
void *ask(void) { return properties; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0; *active = 0; return 0;
}
"""
CAPABILITY = 360 // 4, 364 // 4  # ints
NEVER_CALLED = """
cuCtxGetCurrent cuCtxSetCurrent cuDeviceGet cuDeviceGetAttribute cuDevicePrimaryCtxRetain
cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorString
cuLaunchCooperativeKernel cuLaunchKernel cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2
cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleUnload
cuOccupancyMaxActiveBlocksPerMultiprocessor cuPointerGetAttribute cuTensorMapEncodeTiled
""".split()
GUARD_DEVICES = 8  # of the guard that torch installs where it finds no device


def start(arch: int) -> None:
    """Pretend, for the rest of this process, that device cuda:0 is the GPU of ``CHIPS[arch]``.

    Raises:
        RuntimeError: torch is imported already, or is no build for CUDA.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: start in a process that has not used it")
    stub = _load_stub()
    import torch

    from benchmarks.compiled import stand_ins

    if not torch.version.cuda:
        raise RuntimeError(f"torch {torch.__version__} is no build for CUDA")
    torch._C._ensureCUDADeviceGuardSet()  # while there are no devices: a guard that asks no driver
    ctypes.c_int.in_dll(stub, "devices").value = GUARD_DEVICES
    chip = CHIPS[arch]
    properties = (ctypes.c_int * 2048).in_dll(stub, "properties")
    for index, value in zip(CAPABILITY, (chip.major, chip.minor)):
        properties[index] = value
    stand_ins.in_torch(chip)
    stand_ins.in_dynamo(chip)
    stand_ins.in_inductor()
    stand_ins.in_triton(chip, arch)


def _load_stub() -> ctypes.CDLL:
    """A library that stands before torch's own symbols, and is libcuda.so.1 to who asks for it."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "stub.c"), Path(folder, "libcuda.so.1")
        source.write_text(
            STUB + "".join(f"int {name}() {{ return 999; }}\n" for name in NEVER_CALLED)
        )
        name = "-Wl,-soname,libcuda.so.1"
        subprocess.run(["cc", "-w", "-shared", "-fPIC", name, "-o", library, source], check=True)
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
