"""What torch.compile makes of VSA, BSA and whole models on NVIDIA GPUs: launches, calls outside
Triton, and the registers and spills of kernels. Measures no time, and needs no GPU.

    python -m benchmarks.lowering [CASE ...]

    python -m benchmarks.lowering --arch 80 --rows out/lowering.jsonl vsa_full64_d64

The cases are those of ``benchmarks/compiled/cases.py``; without a name, all.
``docs/results/compiled.md`` has the counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import warnings
from pathlib import Path

from benchmarks.compiled import pretend
from benchmarks.compiled.chips import CHIPS


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.lowering")
    parser.add_argument("names", nargs="*", metavar="CASE", help="none: all")
    parser.add_argument("--arch", type=int, default=90, choices=CHIPS, help="sm_90, say")
    parser.add_argument("--configs", action="store_true", help="the fine stage, a case a config")
    parser.add_argument("--ours", action="store_true", help="leave out kernels that Inductor fused")
    parser.add_argument("--rows", type=Path, help="append a JSON line a graph to this file")
    given = parser.parse_args()
    try:
        pretend.start(given.arch)  # imports torch
    except RuntimeError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")  # torch's own, about fake tensors
    from benchmarks.compiled.cases import CONFIGS, LAYERS, MODELS
    from benchmarks.compiled.rows import rows_of, versions

    cases = CONFIGS if given.configs else LAYERS | MODELS
    unknown = set(given.names) - set(cases)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    failed = 0
    for name in given.names or cases:
        whole = name not in MODELS and not given.ours
        try:
            rows = list(rows_of(name, cases[name], given.arch, whole))
        except Exception as error:
            failed += 1
            traceback.print_exception(error, limit=-6)
            of = {"case": name, "arch": f"sm_{given.arch}"}
            rows = [{**of, "error": _last_words(error), **versions()}]
        for row in rows:
            print(_line(row), flush=True)
            if given.rows:
                given.rows.parent.mkdir(parents=True, exist_ok=True)
                with given.rows.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    return 1 if failed else 0


def _last_words(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{error}: {type(cause).__name__}: {cause}"[:1000]


def _line(row: dict) -> str:
    if "error" in row:
        return f"{row['case']:32} {row['error'].splitlines()[0][:100]}"
    spills = [
        f"{k['kernel']} spills {k['spilled_bytes']} bytes"
        for k in row["kernels"]
        if k["spilled_bytes"]
    ]
    spills += [f"{k['kernel']}: {remark}" for k in row["kernels"] for remark in k["remarks"]]
    counts = "{triton_launches:3} Triton ({flex_launches} FlexAttention), {outside_calls:2} outside"
    return f"{row['case']:32} {row['graph']:8} {counts.format(**row)}  {'; '.join(spills)}"


if __name__ == "__main__":
    sys.exit(main())
