"""Hypothesis without deadlines (compilation is slow); in CI the draws are the same every time.

Without a GPU, Triton kernels run in Triton's interpreter, on the CPU. The files that take longest
come first, so that none of them is left for one process when the others are done.

A process has one thread: with more, sums of one model are not the same bits in every call. Python
looks for cycles less often: the many objects of compilers had it do so for a sixth of their time.
Programs of all of its tests count towards one limit, whichever files it gets.
"""

import gc
import getpass
import os
import tempfile
from importlib.util import find_spec

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, here and in processes of tests
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):  # which Inductor's keys leave out
    name = f"torchinductor_{getpass.getuser()}_{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), name))

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):
        from benchmarks.compiled.quick import quicken

        quicken()
gc.set_threshold(10_000, 20, 20)
torch._dynamo.config.recompile_limit = 64

settings.register_profile(
    "flexsparse", deadline=None, max_examples=50, derandomize="CI" in os.environ
)
settings.load_profile("flexsparse")

SLOWEST = [
    "compiled/test_proof.py",
    "compiled/test_run.py",
    "train/test_trainer_layouts.py",
    "benchmarks/test_gpu_benchmark.py",
    "train/test_faults.py",
    "benchmarks/test_evidence.py",
    "train/test_annealing.py",
    "compiled/test_bystanders.py",
    "models/test_video_dit_compile.py",
    "test_bsa.py",
    "demo/test_demo.py",
    "train/test_nonfinite.py",
    "benchmarks/test_gpu_oracle.py",
    "pipelines/test_sparse_compile.py",
    "train/test_lora_runs.py",
]


def pytest_xdist_auto_num_workers():
    """One more than there are cores, up to four: some tests wait for other processes."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: nobody looks for cycles in it again


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    places = {os.path.join(here, name): place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(SLOWEST)))
