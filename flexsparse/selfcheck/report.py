"""Every check of the self-check, and the lines that say what was found."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend

from flexsparse.choice.rules import Mass, Threshold, TopK
from flexsparse.selfcheck import attention as on
from flexsparse.selfcheck import cases
from flexsparse.selfcheck import rows as of_rows
from flexsparse.selfcheck.cases import BF16, FP32, Case
from flexsparse.selfcheck.laws import Ratios
from flexsparse.torch_names import unproven

_SDPA = "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"
_RESET = 32  # checks; torch refuses to compile one function for more than 64 shapes


@dataclass(frozen=True)
class Check:
    """One case of one backend. ``function(case, device)`` returns ratios, right up to 1, by the
    name of the result, and raises NotAvailable where the backend does not exist."""

    backend: str
    case: Case
    function: Callable[[Case, str], Ratios]


class Result(NamedTuple):
    """What a check found: a row of a benchmark, too."""

    backend: str
    case: str
    ok: bool | None
    """None where the backend is not available."""
    ratio: float | None
    """The worst error over what it may be; inf where bits differ, NaN where ours has NaN, None if
    there is none."""
    detail: str
    """The names of the wrong results, the exception, or why the backend is not available."""
    seconds: float


def checks(full: bool = False) -> list[Check]:
    """Every check of the self-check; another is another entry here."""
    vsa, bsa = cases.VSA_CASES, cases.BSA_CASES
    dense, rows = cases.DENSE_CASES, cases.ROW_CASES
    if full:
        vsa = cases.full_cases(TopK(3), TopK(1), Threshold(2), "all tiles")
        bsa = cases.full_cases(TopK(3), TopK(1), Threshold(2), Mass(0.8), "all tiles")
        dense = rows = cases.full_plain_cases()
    flash = Case("full128", 128, BF16, TopK(3))
    table: list[tuple[str, Callable[[Case, str], Ratios], Sequence[Case]]] = [
        ("pooling", of_rows.pooling, rows),
        ("pruning", of_rows.prune, rows),
        ("restoring", of_rows.restore, rows),
        ("FlexAttention, VSA", on.vsa, vsa),
        ("VSA with gates, compiled", on.gated_vsa, cases.GATED_CASES),
        ("FlexAttention, two masks", on.two_masks, [Case("padded64", 64, FP32, TopK(3))]),
        ("BSA", on.bsa, bsa),
        *((f"SDPA {x}", on.sdpa(SDPBackend.__members__[x]), dense) for x in _SDPA),
        # Its kernels take masks of few sizes: 128 rows on Hopper, pairs of them on Blackwell.
        ("FlexAttention, BACKEND=FLASH", on.flash, [flash, replace(flash, query_tiles=2)]),
        ("FlexAttention, not ours", on.other_flex_attention, [Case("full64", 64, BF16)]),
    ]
    return [Check(name, case, function) for name, function, some in table for case in some]


def run(
    device: str,
    full: bool = False,
    report: Callable[[str], object] = print,
    *,
    only: Iterable[Check] | None = None,
) -> list[Result]:
    """Run every check, or ``only`` these, and say what each found as it finishes.

    An exception within a check is what that check found; the others go on.

    Args:
        device: "cuda" or "cpu".
        full: the product of shapes, head dims, dtypes, rules and logits, not a subset that covers
            each of them.
        report: takes one line.

    >>> few = [c for c in checks() if c.backend == "pooling"]
    >>> [r.ok for r in run("cpu", report=lambda line: None, only=few)]
    [True, True, True, True]
    """
    report(versions(device))
    if newer := unproven():
        report(newer)
    results = []
    for result in each(device, checks(full) if only is None else only):
        results.append(result)
        report(_line(result))
    for line in summary(results):
        report(line)
    return results


def each(device: str, some: Iterable[Check]) -> Iterator[Result]:
    """What each check finds, as it finishes."""
    for number, check in enumerate(some):
        if device == "cuda" and number % _RESET == _RESET - 1:
            torch.compiler.reset()
        yield _result(check, device)


def _result(check: Check, device: str) -> Result:
    def result(ok: bool | None, ratio: float | None, detail: str) -> Result:
        seconds = time.perf_counter() - begin
        return Result(check.backend, str(check.case), ok, ratio, detail, seconds)

    begin = time.perf_counter()
    try:
        ratios = check.function(check.case, device)
    except on.NotAvailable as why:
        return result(None, None, str(why))
    except Exception as error:
        return result(False, None, f"raised {type(error).__name__}: {on.one_line(str(error))}")
    wrong = [name for name, ratio in ratios.items() if not ratio <= 1]
    worst = max(ratios.values(), key=lambda x: (x != x, x))  # NaN is worse than inf
    return result(not wrong, worst, ", ".join(wrong))


def _line(result: Result) -> str:
    word = _WORDS[result.ok]
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    detail = f"  {result.detail}" if result.detail else ""
    name = f"{result.backend}: {result.case}"
    return f"{word:14}{ratio:>5} {result.seconds:6.1f} s  {name}{detail and ':' + detail}"


_WORDS = {True: "ok", False: "WRONG", None: "not available"}


def summary(results: Sequence[Result]) -> list[str]:
    """A line for each backend: ok, wrong (which results in which cases), or why not available."""
    lines = [""]
    for backend in dict.fromkeys(r.backend for r in results):
        mine = [r for r in results if r.backend == backend]
        wrong = [r for r in mine if r.ok is False]
        absent = [r for r in mine if r.ok is None]
        parts = []
        if wrong:
            where = "; ".join(f"{r.detail} in {r.case}" for r in wrong)
            parts.append(f"WRONG in {len(wrong)} of {len(mine)} cases: {where}")
        elif len(absent) < len(mine):
            parts.append(f"ok in {len(mine) - len(absent)} cases")
        if absent:
            why = "; ".join(dict.fromkeys(r.detail for r in absent))
            few = "" if len(absent) == len(mine) else f" in {len(absent)}"
            parts.append(f"not available{few} ({why})")
        lines.append(f"{backend}: {', '.join(parts)}")
    return lines


def versions(device: str) -> str:
    """One line: the device, torch, triton, CUDA, and how fp32 products are computed."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    name = platform.processor() or platform.machine()
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    return (
        f"{device}: {name}, torch {torch.__version__}, triton {triton}, CUDA {torch.version.cuda}, "
        f"fp32 products {torch.get_float32_matmul_precision()}"
    )
