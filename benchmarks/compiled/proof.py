"""The cases that ``make test`` compiles, and ``benchmarks.torch_versions`` with each torch, beside
further ones.

They run in processes of their own: pretending that there is a GPU cannot be taken back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.compiled.families import FAMILIES
from benchmarks.compiled.run import ROOT
from benchmarks.record import Row


class Job(NamedTuple):
    """What one process compiles."""

    arch: int
    names: tuple[str, ...]


# Each pair of a head dim, a shape, and one or two query tiles is in some case of VSA. One process
# for a GPU: it compiles once what several cases have.
OTHERS = "vsa_ragged64_d128_gated", "bsa_ragged64_d64_threshold"
PROOF = (
    Job(
        90,
        (
            *("dit_dense", "dit_vsa", "dit_bsa", "wan_vsa", "diffusers_wan"),
            *("vsa_full64_d64_gated", "vsa_padded64_d64_gated_pairs", "vsa_ragged64_d64_gated"),
            *("vsa_full64_d128_gated_pairs", "vsa_padded64_d128_gated"),
            *("vsa_ragged64_d128_gated_pairs", "vsa_text64_d128_gated"),
            "vsa_parts64_d128_gated",
            *("bsa_full64_d64_top", "bsa_padded64_d64_mass", "bsa_ragged64_d128_threshold"),
            *("literal_full64_d64", "vsa_padded64_d64_inference", "vsa_full64_d128_inference"),
        ),
    ),
    Job(80, OTHERS),
    Job(100, OTHERS),
)
_rest = "literal_full64_d128", *FAMILIES
EVERY = (*PROOF, *(Job(90, _rest[i::2]) for i in range(2)))


def compile_proof(
    python: str = sys.executable,
    quiet: bool = True,
    jobs: Sequence[Job] = PROOF,
    whole: bool = True,
) -> list[Row]:
    """The rows of ``benchmarks.lowering`` for every job, with the torch of that interpreter; not
    ``whole``, of FlexAttention's kernels and ours alone.

    Raises:
        RuntimeError: a process ended without all its rows, with its last words.
    """
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda job: compile_job(job, python, quiet, whole=whole), jobs), [])


def compile_job(
    job: Job,
    python: str = sys.executable,
    quiet: bool = True,
    root: Path = ROOT,
    whole: bool = True,
) -> list[Row]:
    """The rows of one process; ``root`` is a checkout of the project."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        command = [python, "-m", "benchmarks.lowering", f"--arch={job.arch}", f"--rows={path}"]
        done = subprocess.run(
            [*command, *([] if whole else ["--ours"]), *job.names],
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.PIPE,
        )
        rows = list(map(json.loads, path.read_text().splitlines())) if path.exists() else []
    if {row["case"] for row in rows} != set(job.names):
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return rows
