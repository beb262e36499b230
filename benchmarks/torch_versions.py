"""What each torch makes of VSA, BSA and whole models on NVIDIA GPUs: a row a version. No GPU.

    python -m benchmarks.torch_versions [VERSION ...] [--venvs out/torch_versions]

The cases of ``benchmarks/compiled/proof.py`` are compiled, the layers of all models of diffusers
among them, and the problems beside it are run in Triton's interpreter: ``errors`` has the largest
of each, over what it may be. Then errors that were made once are put back (``sabotage.py``), each
of which must be seen. The environment of a version is ``<venvs>/<version>``, made if it is not
there (5 GB each, by pip); one without diffusers has those cases among ``failed``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from math import inf
from pathlib import Path

from torch.torch_version import TorchVersion

from benchmarks.compiled.problems import PROBLEMS
from benchmarks.compiled.proof import EVERY, compile_proof
from benchmarks.compiled.run import ROOT, ratios
from benchmarks.compiled.sabotage import SABOTAGES, is_red
from benchmarks.record import RESULTS, Row, append, markdown, read

VERSIONS = "2.11.0", "2.13.0", "2.14.1", "2.15.0"
FILE = "torch_versions"
ALSO = {"2.11.0": ["numpy<2.4"]}  # Triton 3.6's interpreter takes no newer one


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.torch_versions")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--venvs", type=Path, default=Path("out", FILE), help="a folder of them")
    parser.add_argument(
        "--python", type=Path, help="an interpreter to compile with, in place of VERSIONs"
    )
    given = parser.parse_args()
    made = (_interpreter(version, given.venvs) for version in given.versions)
    for python in [str(given.python.absolute())] if given.python else made:
        print(f"compiling with {python}", flush=True)
        try:
            row = summary(compile_proof(python, quiet=False, jobs=EVERY))
        except RuntimeError as error:
            print(f"nothing could be compiled, and there is no row: {error}", flush=True)
            continue
        print("running what it compiled in Triton's interpreter", flush=True)
        row["errors"], said = _errors(python)
        row["failed"] |= said
        row["failed"] |= {x: ratio for x, ratio in row["errors"].items() if not ratio <= 1}
        print("putting errors back", flush=True)
        due = {x: error for x, error in SABOTAGES.items() if error.applies(row["torch"])}
        row["red"] = {x: is_red(error, python) for x, error in due.items()}
        row["failed"] |= {x: "put back, and not seen" for x, red in row["red"].items() if not red}
        append(FILE, row)
        print(f"torch {row['torch']}: {len(row['failed'])} failed", flush=True)
    print(table())
    return 0


def _interpreter(version: str, venvs: Path) -> str:
    python = (venvs / version / "bin" / "python").absolute()
    whole = venvs / version / "installed"  # written last: pip may have been stopped
    if not whole.exists():
        print(f"making {venvs / version}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venvs / version], check=True)
        pip = [python, "-m", "pip", "install", "--progress-bar", "off"]
        wanted = f"torch=={version}", f"{ROOT}[diffusers]", "einops", *ALSO.get(version, [])
        subprocess.run([*pip, *wanted], check=True)
        whole.touch()
    return str(python)


def _errors(python: str) -> tuple[dict[str, float], Row]:
    """The largest error of each problem, and what those said that could not be run."""
    try:
        return {x: max(found.values()) for x, found in ratios(python=python).items()}, {}
    except RuntimeError:
        errors, failed = {}, {}
    for name in PROBLEMS:
        try:
            errors[name] = max(ratios([name], python=python)[name].values())
        except RuntimeError as error:
            failed[name] = str(error)
    return errors, failed


def summary(rows: list[Row]) -> Row:
    """Rows of compiled cases, of one torch, as a row of the version.

    ``launches`` has ``[Triton's, FlexAttention's among them, calls outside]`` by architecture,
    case and graph; ``spills`` and ``remarks`` have the kernels that have some.
    """
    graphs = [row for row in rows if "error" not in row]
    launches: Row = {}
    for row in graphs:
        counts = [row[name] for name in ("triton_launches", "flex_launches", "outside_calls")]
        launches.setdefault(row["arch"], {}).setdefault(row["case"], {})[row["graph"]] = counts
    kernels = [(f"{row['arch']} {row['case']}", k) for row in graphs for k in row["kernels"]]
    return {
        **{name: rows[0][name] for name in ("torch", "triton", "commit", "date")},
        "launches": launches,
        "spills": [[x, k["kernel"], k["spilled_bytes"]] for x, k in kernels if k["spilled_bytes"]],
        "remarks": [[x, k["kernel"], k["remarks"]] for x, k in kernels if k["remarks"]],
        "failed": {f"{row['arch']} {row['case']}": row["error"] for row in rows if "error" in row},
    }


def latest(results: Path = RESULTS) -> dict[str, Row]:
    """The last row of each version, by its number, in their order."""
    found = {row["torch"].split("+")[0]: row for row in read(FILE, results)}
    return dict(sorted(found.items(), key=lambda item: TorchVersion(item[0])))


def passed(results: Path = RESULTS) -> list[str]:
    """The versions whose last row is whole, and nothing in it failed."""
    return [version for version, row in latest(results).items() if _is_whole(row)]


def _is_whole(row: Row) -> bool:
    """Whether it has every case compiled without a remark of ptxas, every problem right, and
    every error that was put back seen."""
    due = {(f"sm_{job.arch}", name) for job in EVERY for name in job.names}
    compiled = {(arch, name) for arch, cases in row["launches"].items() for name in cases}
    red = {x for x, seen in row.get("red", {}).items() if seen}
    return (
        not row["failed"]
        and not row["remarks"]
        and compiled >= due
        and row.get("errors", {}).keys() >= PROBLEMS.keys()
        and all(ratio <= 1 for ratio in row["errors"].values())
        and red == {x for x, error in SABOTAGES.items() if error.applies(row["torch"])}
    )


def table(results: Path = RESULTS) -> str:
    """Every version that has a row, in Markdown."""
    lines = []
    cases = sum(len(job.names) for job in EVERY)
    for version, row in latest(results).items():
        compiled = sum(map(len, row["launches"].values()))
        graphs = [
            counts
            for found in row["launches"].values()
            for graphs in found.values()
            for counts in graphs.values()
        ]
        errors, spills = row.get("errors", {}).values(), dict[str, int]()
        for _, kernel, size in row["spills"]:
            name = re.sub(r"^triton_tem_\w*?(flex_attention(?:_backward)?).*", r"\1", kernel)
            spills[name] = max(size, spills.get(name, 0))
        lines.append(
            [
                version,
                row["triton"],
                f"{compiled} of {cases}",
                *(sum(counts[i] for counts in graphs) for i in range(3)),
                ", ".join(f"`{kernel}` {size}" for kernel, size in sorted(spills.items())) or "-",
                len(row["remarks"]) or "-",
                f"{sum(x <= 1 for x in errors)} of {len(PROBLEMS)}, {max(errors, default=inf):.2f}",
                f"{sum(row['red'].values())} of {len(row['red'])}" if "red" in row else "-",
            ]
        )
    head = ["torch", "Triton", "cases compiled", "Triton launches", "of FlexAttention"]
    head += ["calls outside", "bytes spilled", "ptxas' remarks", "problems run right, worst error"]
    head += ["errors put back, seen"]
    return markdown(head, lines)


if __name__ == "__main__":
    sys.exit(main())
