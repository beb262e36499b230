"""The experiments in small, and what each row of theirs is made of."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import tilings

from benchmarks import scaling
from benchmarks.evidence import ablations, adaptation, parity, scale, selection
from benchmarks.evidence.clips import NormalisedLoader
from benchmarks.evidence.flops import step_flops
from benchmarks.evidence.page import SECTIONS
from benchmarks.evidence.pictures import NONE
from benchmarks.evidence.recall import best, held, tile_mass
from benchmarks.evidence.runs import Run, all_of, config_of, leave, remembered
from benchmarks.record import read
from flexsparse.reference import tile_of_token
from models.attention import VSA, Dense
from train.data import VideoDataLoader
from train.weights.initial import first_model


@given(tilings(max_side=6), st.integers(0, 2**31), st.integers(1, 20))
def test_mass_is_what_a_plain_softmax_gives_each_tile(tiling, seed, top_k):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 2, tiling.tokens, 16, generator=generator).double()
    weights = (q @ k.mT / 4).softmax(-1)
    tiles = torch.nn.functional.one_hot(tile_of_token(tiling.video, tiling.tile)).double()
    exact = tiles.T @ (weights @ tiles) / tiles.sum(0)[:, None]
    mass = tile_mass(*(tiling.to_tiles(x) for x in (q, k)), tiling)
    torch.testing.assert_close(mass.double(), exact, rtol=1e-5, atol=1e-6)
    n = tiling.num_tiles
    chosen = torch.rand(1, 2, n, n, generator=generator).argsort(-1) < min(top_k, n)
    assert (held(mass, chosen) <= best(mass, chosen) + 1e-6).all()
    everything = torch.ones_like(chosen)
    assert held(mass, everything).sub(1).abs().max() < 1e-5


def test_flops_are_six_for_each_weight_and_token_and_gates_count():
    model = replace(scale.CPU.model, video=(4, 16, 32), layers=3)
    here = replace(scale.CPU, model=model)
    dense, vsa = (
        step_flops(here.trainer(slot, "doom", seed=0, steps=16, folder=Path()))
        for slot in (Dense(), VSA(sparsity=0.5))
    )
    gates = 2 * model.layers * model.dim**2
    assert vsa.parameters - dense.parameters == gates + 2 * model.layers * model.dim
    tokens = math.prod(model.grid)  # whole tiles: no padding
    assert vsa.other - dense.other == 6 * tokens * gates
    in_rows = model.layers * (4 * model.dim**2 + 2 * model.dim * model.ffn + 2 * model.dim**2)
    assert dense.other > 6 * tokens * in_rows


def test_schedules_of_adaptation_reach_their_target_at_half():
    n = adaptation.VSA_TARGET.tiling(scale.CPU.model.grid).num_tiles
    for steps in (64, 256, 1000):
        falling, rising = adaptation.falling(scale.CPU, steps), adaptation.rising(steps)
        assert falling.tiles(0, n, 6) is None and falling.tiles(steps // 2, n, 6) == 6
        assert falling.tiles(steps // 4, n, 6) > 6
        target = n * (1 - adaptation.BSA_TARGET.sparsity)
        assert rising.tiles(steps // 2, n, target) == target


def test_pixels_have_the_spread_that_the_model_expects():
    loader = NormalisedLoader.Config(source="digits", mean=-0.7, std=0.2, height=32, width=32)
    plain = VideoDataLoader.Config(source="digits", height=32, width=32)
    ours, theirs = (next(iter(config.build()))["video"] for config in (loader, plain))
    torch.testing.assert_close(ours, (theirs + 0.7) / 0.2 * 0.5)


@pytest.fixture(scope="module")
def tiny():
    """A scale of seconds, on moving digits."""
    model = replace(scale.CPU.model, video=(4, 32, 32), dim=32, heads=2, layers=1, ffn=32)
    return replace(scale.CPU, name="tiny", model=model, fps=0, warmup=2, validation_clips=2)


def test_all_methods_of_a_seed_start_from_the_same_weights(tiny):
    def start(slot, seed):
        run = Run("parity", "doom", "any", slot, seed)
        return first_model(config_of(run, tiny, 16, Path())).state_dict()

    dense, vsa, bsa = (start(slot, seed=1) for slot in scale.METHODS.values())
    assert dense.keys() == bsa.keys() and all("gate" in name for name in vsa.keys() - dense.keys())
    assert all(torch.equal(dense[x], vsa[x]) and torch.equal(dense[x], bsa[x]) for x in dense)
    assert any(not torch.equal(x, y) for x, y in zip(dense.values(), start(Dense(), 2).values()))


def test_the_experiments_run_and_are_not_run_twice(tiny, tmp_path, monkeypatch, capsys):
    digits = scale.Source(lambda scale: None, lambda scale: dict(source="digits"))
    monkeypatch.setitem(scale.DATA, "digits", digits)
    for module in (parity, ablations, adaptation, selection, scaling):
        monkeypatch.setattr(module, "here", lambda: tiny)
    given = ["--data", "digits", "--steps", "8", "--out", str(tmp_path / "out")]
    given += ["--results", str(tmp_path)]
    for _ in range(2):
        parity.main([*given, "--seeds", "2"])
        assert len(read("evidence", tmp_path)) == 6
    assert f"6/6 digits bsa seed 1: in {tmp_path} already" in capsys.readouterr().out
    adaptation.main(given)
    ablations.main([*given, "--only", "fill"])
    monkeypatch.setattr(scaling, "cells", lambda *_: [scaling.Cell(tiny, 4 * 8 * 8)])
    monkeypatch.setattr(scaling, "steps_for", lambda *_: 8)
    scaling.main([arg for arg in given if arg not in ("--steps", "8")])
    selection.main([*given, "--images", str(tmp_path)])
    leave()
    for name in SECTIONS.keys() - {"copies", "copies_adaptation"}:  # see test_evidence_copies.py
        make = SECTIONS[name]
        made = make(tmp_path, tmp_path)
        assert made != NONE, name
    assert len(list(tmp_path.glob("*.png"))) == 6
    assert {len(row["validation"]) for row in read("evidence", tmp_path)} == {scale.POINTS + 1}


def test_a_run_that_was_cut_off_or_was_of_another_config_is_trained_from_its_start(
    tiny, tmp_path, monkeypatch
):
    digits = scale.Source(lambda scale: None, lambda scale: dict(source="digits"))
    monkeypatch.setitem(scale.DATA, "digits", digits)
    run, out = Run("parity", "digits", "dense", Dense()), tmp_path / "out"
    cut = config_of(run, tiny, 16, out).build()
    cut.train(until=8)
    cut.checkpointer.save_now(8)
    cut.close()
    (row,) = all_of([run], tiny, 16, out, tmp_path)
    assert len(row["losses"]) == 16 and row["validation"][-1][0] == 16
    assert len(row["validation"]) == scale.POINTS + 1
    assert all_of([run], tiny, 16, tmp_path / "elsewhere", tmp_path) == [row]
    (other,) = all_of([run], replace(tiny, lr=1e-4), 16, out, tmp_path)
    assert other["losses"][1:] != row["losses"][1:] and len(read("evidence", tmp_path)) == 2
    leave()


def test_trial_steps_are_made_once(tmp_path):
    asked = iter((320, 640))
    given = [remembered(tmp_path / "cpu", key, lambda: next(asked)) for key in "aab"]
    assert given == [320, 320, 640]
