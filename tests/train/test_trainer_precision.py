"""Compiled blocks and bfloat16 train as exactly as plain PyTorch in the same dtype."""

from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from laws import assert_accurate
from torch._dynamo.utils import counters
from trainer_runs import plain_run, run, tiny

from train.weights.checkpoint import Checkpointer


def config(folder, **changes):
    """One layer with VSA, three steps."""
    whole = tiny(folder, steps=3, checkpoint=Checkpointer.Config(enable=False), **changes)
    return replace(whole, model=replace(whole.model, layers=1))


def flat(result, dtype=torch.float32):
    """Numbers, and all weights in a row: over few of them rounding can come out as zero by luck."""
    numbers, weights = result
    kept = [weights[name].flatten() for name in sorted(weights) if name.startswith("model.")]
    return [torch.tensor(numbers, dtype=dtype), torch.cat(kept).to(dtype)]


@pytest.fixture
def exact():
    return flat(plain_run(config("unused"), torch.float64), torch.float64)


def test_compiled_and_checkpointed_is_as_exact_as_eager(tmp_path, exact, monkeypatch):
    """All of compilation but Inductor's code, which takes a minute; tests/models has that."""
    real, backend = torch.nn.Module.compile, "aot_eager_decomp_partition"
    compiled = partialmethod(real, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    eager = flat(run(config(tmp_path / "eager")))
    torch._dynamo.reset()
    counters.clear()
    asked = config(tmp_path / "compiled", compile=True, activation_checkpoint="selective")
    ours = flat(run(asked))
    assert counters["stats"]["unique_graphs"] == 1, "one graph for all steps"
    assert_accurate(ours, [eager], exact)


def test_bfloat16_is_as_exact_as_plain_bfloat16(tmp_path, exact):
    ours = flat(run(config(tmp_path, param_dtype="bfloat16")))
    plain = flat(plain_run(config("unused"), torch.bfloat16))
    assert all(x.isfinite().all() for x in ours)
    assert_accurate(ours, [plain], exact)
    error = (ours[0].double() - exact[0]).abs().max().item()
    assert error > 1e3 * torch.finfo(torch.float32).eps, "it computes in bfloat16"
