"""The self-check: it passes here, and it names each thing that is made to be wrong."""

import math
import warnings

import pytest
import torch
from laws import assert_accurate
from sabotages import BSA, POOL, SABOTAGES, SDPA, SMALL, VSA, quietly, scaled

from flexsparse import reference, selfcheck
from flexsparse.choice import selection
from flexsparse.selfcheck import Check, report, run
from flexsparse.selfcheck.__main__ import main
from flexsparse.selfcheck.accuracy import error_ratios, recomputed_attention
from flexsparse.selfcheck.cases import DIMS, SHAPES


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_what_is_broken_is_named(sabotage, monkeypatch):
    change, check, named = SABOTAGES[sabotage]
    change(monkeypatch)
    lines = []
    (result,) = run("cpu", report=lines.append, only=[check])
    wrong = set(result.detail.split(", "))
    assert result.ok is False and named <= wrong and not result.ratio <= 1
    spared = {"dq": "dk", "dk": "dq", "dv": "dk", "first-again": "dk of the second mask"}.get(
        sabotage
    )
    assert spared not in wrong, "and what is right is not"
    assert lines[1].startswith("WRONG") and lines[1].endswith(f"{check.case}:  {result.detail}")
    assert lines[-1] == (f"{check.backend}: WRONG in 1 of 1 cases: {result.detail} in {check.case}")


def test_what_is_broken_makes_the_command_fail(monkeypatch, capsys):
    scaled(1, 1.01)(monkeypatch)
    monkeypatch.setattr(report, "checks", lambda full: [POOL, VSA])
    assert main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out.endswith(f"VSA: WRONG in 1 of 1 cases: dk in {SMALL}\n")


def test_all_is_right_on_this_processor(capsys):
    assert main(["--device", "cpu"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert torch.__version__ in header and "triton" in header and "CUDA" in header
    each, backends = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert len(each) == len(selfcheck.checks())
    assert {line.split()[0] for line in each} == {"ok", "not"}
    assert [x.split(":")[0] for x in backends] == [
        *dict.fromkeys(c.backend for c in selfcheck.checks())
    ]
    assert "FlexAttention, VSA: ok in 14 cases" in backends
    assert any(x.startswith("FlexAttention, BACKEND=FLASH: not available (") for x in backends)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_all_is_right_on_this_gpu():
    assert [r for r in run("cuda") if r.ok is False] == []


def test_the_cases_cover_each_value_and_full_covers_the_product():
    for full, most in ((False, 60), (True, 2000)):
        checks = selfcheck.checks(full)
        assert len(checks) < most and len({(c.backend, c.case) for c in checks}) == len(checks)
        assert len({(c.backend, str(c.case)) for c in checks}) == len(checks)
        for backend in ("FlexAttention, VSA", "BSA"):
            mine = [c.case for c in checks if c.backend == backend]
            for values, field in (
                ({s.name for s in SHAPES} - ({"ragged32"} if backend == "BSA" else set()), "shape"),
                (set(DIMS), "dim"),
                ({torch.bfloat16, torch.float16, torch.float32}, "dtype"),
                ({1, 64}, "logits"),
                ({1, 2}, "query_tiles"),
            ):
                assert values <= {getattr(c, field) for c in mine}, (backend, field)
            for some in ("TopK(k=1)", "TopK(k=3)", "Threshold(k=2)"):
                assert any(some in str(c) for c in mine), (backend, some)


def test_a_check_that_raises_is_reported_and_the_others_go_on():
    def broken(case, device):
        raise ArithmeticError("\nthe kernel\nis not well")

    before, found, after = quietly(VSA, Check("broken", SMALL, broken), BSA)
    assert (before.ok, after.ok) == (True, True)
    assert (found.ok, found.ratio) == (False, None)
    assert found.detail == "raised ArithmeticError: the kernel"


def test_a_gpu_that_is_not_there_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == (
        "--device cuda: torch sees no GPU here; leave it out for the CPU\n"
    )


def test_only_torchs_own_no_makes_a_kernel_unavailable(monkeypatch):
    def refuse(*_):
        warnings.warn("Flash attention kernel not used because: (Triggered internally at x)")
        warnings.warn("cuDNN attention has been runtime disabled. (Triggered internally at x)")
        warnings.warn("Expected dtype Half. Got float. (Triggered internally at x)")
        raise RuntimeError(message)

    monkeypatch.setattr(selfcheck.attention, "dense_attention", refuse)
    message = "No available kernel. Aborting execution."
    (found,) = quietly(SDPA)
    assert (found.ok, found.detail) == (None, "Expected dtype Half")
    message = "CUDNN_STATUS_EXECUTION_FAILED"
    (found,) = quietly(SDPA)
    assert (found.ok, found.detail) == (False, f"raised RuntimeError: {message}")


def test_the_summary_tells_what_is_wrong_from_what_is_not_there():
    rows = [
        selfcheck.Result("a", "one", True, 0.5, "", 1.0),
        selfcheck.Result("a", "two", False, 1.5, "dk, dv", 1.0),
        selfcheck.Result("a", "three", None, None, "no fp32", 1.0),
        selfcheck.Result("b", "one", True, 0.5, "", 1.0),
        selfcheck.Result("b", "two", None, None, "no fp32", 1.0),
        selfcheck.Result("c", "one", None, None, "not installed", 1.0),
    ]
    assert selfcheck.summary(rows)[1:] == [
        "a: WRONG in 1 of 3 cases: dk, dv in two, not available in 1 (no fp32)",
        "b: ok in 1 cases, not available in 1 (no fp32)",
        "c: not available (not installed)",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1, 1.0015, 1.0025, 1.05, math.nan])
def test_the_rule_is_that_of_the_other_tests(dtype, factor):
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(50, generator=generator, dtype=torch.float64)
    plain = [exact.to(dtype), (exact * 1.001).to(dtype)]
    ours = (exact * factor).to(dtype)
    (ratio,) = error_ratios([ours], [[x] for x in plain], [exact], [exact * 9])
    try:
        assert_accurate([ours], [[x] for x in plain], [exact], [exact * 9])
    except AssertionError as error:
        assert not ratio <= 1, error
    else:
        assert ratio <= 1
    if factor != 1.0025 or dtype == torch.float32:  # a rounding of half precision is larger
        assert (ratio <= 1) == (factor in (1, 1.0015)), "twice plain's"


def test_results_that_do_not_belong_together_are_refused():
    x = torch.zeros(3)
    for ours, plain, exact in ((x[:2], x, x.double()), (x, x.half(), x.double()), (x, x, x)):
        with pytest.raises(ValueError, match="result 0: ours, exact and plain are"):
            error_ratios([ours], [[plain]], [exact])
    assert error_ratios([x], [[x]], [x.double()]) == [0.0]
    assert error_ratios([x + 1], [[x]], [x.double()]) == [math.inf]


def test_attention_recomputed_in_the_backward_is_attention():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(1, 2, 12, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    mask = torch.rand(1, 2, 12, 12, generator=generator) < 0.6
    mask |= torch.eye(12, dtype=torch.bool)
    *inputs, g = draw

    def results(attend):
        return selfcheck.laws.with_gradients(lambda *x: attend(*x, mask), inputs, g)

    ours, exact = results(recomputed_attention), results(reference.attention)
    assert all(ratio <= 1 for ratio in error_ratios(ours, [exact], exact, draw))
    half = [x.half() for x in inputs]
    low = selfcheck.laws.with_gradients(lambda *x: recomputed_attention(*x, mask), half, g)
    assert [x.dtype for x in low] == [torch.float16] * 4
    assert all(0 < (a - b).abs().max() < 0.1 for a, b in zip(low, exact))


@pytest.mark.parametrize("dim", [16, 64, 80])
def test_recomputed_scores_are_rounded_unlike_those_of_the_forward(dim):
    """Or the error that other tests are measured by would be nearly zero, where a BLAS adds up in
    the same order both times."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(1, 64, 1, dim, generator=generator) for _ in range(4))
    mask = torch.ones(1, 1, dtype=torch.bool)
    *_, dv = selfcheck.laws.with_gradients(
        lambda *x: recomputed_attention(*x, mask), [q - 20, k + 20, v], g
    )
    assert (dv != g).any(-1).float().mean() > 0.25  # g times exp(s - s), of the only key's two s


def test_a_tie_between_tiles_may_go_either_way():
    scores = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    plain = scores.float()
    for kept, right in (([0, 1], True), ([0], True), ([1], True), ([2], False)):
        chosen = selection.tile_map(torch.tensor([kept]), 3)
        assert (selfcheck.laws.best_first(chosen, scores, plain, -1) <= 1) is right
