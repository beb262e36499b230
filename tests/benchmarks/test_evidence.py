"""The evidence's arithmetic against what is known of it, and a whole experiment in small."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import tilings

from benchmarks import clips, report, scaling
from benchmarks.evidence import ablations, adaptation, frontier, parity, scale, selection
from benchmarks.evidence.clips import NormalisedLoader
from benchmarks.evidence.flops import step_flops
from benchmarks.evidence.page import SECTIONS
from benchmarks.evidence.pictures import NONE
from benchmarks.evidence.recall import best, held, tile_mass
from benchmarks.evidence.runs import Run, all_of, config_of, leave, remembered
from benchmarks.evidence.scale import METHODS
from benchmarks.evidence.slots import MaxPooledVSA, OwnTileVSA, UngatedVSA, ZeroFillBSA, pool_max
from benchmarks.record import read
from flexsparse import VideoTiling, prune_queries
from flexsparse.reference import tile_of_token
from models.attention import BSA, VSA, Dense
from train.data import VideoDataLoader
from train.data.doom.film import write_lossless
from train.demo.measure import Trial

LAW = 5.0, -0.25


def law(flops, factor=1.0):
    return math.exp(LAW[0]) * (flops * factor) ** LAW[1]


def test_a_power_law_and_its_saving_are_found_again():
    budgets = [1e9 * 2**i for i in range(8)]
    dense = [(c, law(c)) for c in budgets]
    assert frontier.power_law(dense) == pytest.approx(LAW)
    sparse = [(c, law(c, 2.5)) for c in budgets]
    assert frontier.saving(dense, sparse) == pytest.approx((2.5,) * 3)
    never = [(c, 2 * law(budgets[0])) for c in budgets]
    assert all(math.isnan(x) for x in frontier.saving(dense, never))


def test_the_frontier_is_the_better_size_where_there_is_one():
    small, large = [(1.0, 4.0), (100.0, 2.0)], [(10.0, 5.0), (1000.0, 1.0)]
    found = dict(frontier.frontier([small, large], [0.5, 1, 10, 100, 1000, 2000]))
    assert found.keys() == {1, 10, 100, 1000}
    assert found[10] == pytest.approx(math.sqrt(8)) and found[1000] == pytest.approx(1)


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


@given(tilings(max_side=6), st.integers(0, 2**31))
def test_pool_max_sees_valid_rows_alone(tiling, seed):
    x = torch.randn(1, 1, tiling.tokens, 8, generator=torch.Generator().manual_seed(seed))
    of = tile_of_token(tiling.video, tiling.tile)
    exact = torch.stack([x[0, 0, of == i].amax(0) for i in range(tiling.num_tiles)])
    tiled = torch.where(tiling.valid()[:, None], tiling.to_tiles(x), torch.inf)
    assert torch.equal(pool_max(tiled, tiling)[0, 0], exact)


@pytest.mark.parametrize("slot", [MaxPooledVSA(sparsity=0), UngatedVSA(sparsity=0)])
def test_with_all_tiles_the_fine_stage_is_dense_attention(slot):
    tiling = VideoTiling((4, 6, 9))
    x, q, k, v = layer_inputs(tiling)
    layer = slot.build(32, 2, tiling)
    everything = VSA(sparsity=0).build(32, 2, tiling)
    everything.load_state_dict(layer.state_dict() or everything.state_dict())
    if isinstance(slot, UngatedVSA):
        with torch.no_grad():
            for gate in (everything.gate_coarse, everything.gate_fine):
                gate.weight.zero_(), gate.bias.fill_(1)
        expected = everything(x, q, k, v, tiling)
    else:  # its coarse stage pools otherwise
        with torch.no_grad():
            for module in (layer, everything):
                module.gate_coarse.weight.zero_(), module.gate_coarse.bias.zero_()
        expected = everything(x, q, k, v, tiling)
    torch.testing.assert_close(layer(x, q, k, v, tiling), expected)


def test_its_own_tile_alone_is_dense_attention_in_each_tile():
    tiling = VideoTiling((4, 6, 9))
    x, q, k, v = layer_inputs(tiling)
    layer = OwnTileVSA(top_k=1).build(32, 2, tiling)
    of = tiling.to_tiles(tile_of_token(tiling.video, tiling.tile)[None, None, :, None].float())
    live = tiling.valid()
    same = (of[0, 0] == of[0, 0].T) & live & live[:, None]
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same)
    torch.testing.assert_close(layer(x, q, k, v, tiling)[:, :, live], exact[:, :, live])


def layer_inputs(tiling):
    torch.manual_seed(0)
    x = torch.randn(1, tiling.tokens, 32)
    return [tiling.to_tiles(y) for y in (x, *torch.randn(3, 1, 2, tiling.tokens, 16))]


def test_zero_fill_leaves_pruned_queries_without_output():
    tiling = VideoTiling((4, 8, 8))
    x, q, k, v = layer_inputs(tiling)
    filled, nearest = (
        kind(sparsity=0.5, keep=0.5).build(32, 2, tiling)(x, q, k, v, tiling)
        for kind in (ZeroFillBSA, BSA)
    )
    stays = prune_queries(q, tiling, keep=0.5, window=(2, 2, 2)).mask
    assert torch.equal(filled[stays], nearest[stays]) and not filled[~stays].any()


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


@pytest.fixture(scope="module")
def tiny():
    """A scale of seconds, on moving digits."""
    model = replace(scale.CPU.model, video=(4, 32, 32), dim=32, heads=2, layers=1, ffn=32)
    return replace(scale.CPU, name="tiny", model=model, fps=0, warmup=2, validation_clips=2)


def test_the_experiments_run_and_are_not_run_twice(tiny, tmp_path, monkeypatch):
    digits = scale.Source(lambda scale: None, lambda scale: dict(source="digits"))
    monkeypatch.setitem(scale.DATA, "digits", digits)
    for module in (parity, ablations, adaptation, selection, scaling):
        monkeypatch.setattr(module, "here", lambda: tiny)
    given = ["--data", "digits", "--steps", "16", "--out", str(tmp_path / "out")]
    given += ["--results", str(tmp_path)]
    for _ in range(2):
        parity.main([*given, "--seeds", "2"])
        assert len(read("evidence", tmp_path)) == 6
    adaptation.main(given)
    ablations.main([*given, "--only", "fill"])
    monkeypatch.setattr(scaling, "cells", lambda _: [scaling.Cell(tiny, 4 * 8 * 8)])
    monkeypatch.setattr(scaling, "steps_for", lambda *_: 16)
    scaling.main([arg for arg in given if arg not in ("--steps", "16")])
    selection.main([*given, "--images", str(tmp_path)])
    leave()
    for name, make in SECTIONS.items():
        made = make(tmp_path, tmp_path)
        assert made != NONE, name
    assert len(list(tmp_path.glob("*.png"))) == 5
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


def made_up(**changes):
    """A row of the results."""
    names = dict(experiment="parity", scale="cpu", data="doom", name="dense", seed=0, steps=16)
    told = dict(device="none", parameters=1_000_000, tokens=96, sparsity=[0.5], seconds=1.0)
    flops = dict(attention_flops=10, other_flops=10)
    return names | told | flops | dict(validation=[[0, 2.0], [8, 1.5], [16, 1.0]]) | changes


def test_the_page_keeps_runs_apart_and_shows_whole_comparisons(tmp_path):
    rows = [
        made_up(name=name, seed=seed, validation=[[0, 2.0], [8, 1.5], [16, loss]], data=data)
        for data, loss in (("doom", 1.0), ("footage", 3.0))
        for seed in range(2)
        for name in METHODS
    ]
    rows += [made_up(steps=32), made_up(seed=2)]  # a run that has just begun, and an odd seed
    rows += [made_up(name="vsa", seed=1, validation=[[0, 2.0], [8, 1.5], [16, 1.25]])]  # again
    for experiment, names in (("ablations", METHODS), ("scaling", METHODS)):
        rows += [
            made_up(experiment=experiment, name=name, scale=of, validation=[[8, 9.0], [16, loss]])
            for of, loss in (("cpu", 5.0), ("gpu", 7.0))
            for name in names
        ]
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows)))
    doom, footage = SECTIONS["parity"](tmp_path, tmp_path).split("**footage**")
    assert "2 seeds" in doom and "2 seeds" in footage
    assert "| dense | 50.0% | 1.0000 (1.0000 to 1.0000)" in doom
    assert "| VSA | 50.0% | 1.1250 (1.0000 to 1.2500) | +0.0%, +25.0%" in doom
    assert "3.0000 (3.0000 to 3.0000)" in footage and "3.0" not in doom
    first, second = SECTIONS["ablations"](tmp_path, tmp_path).split("**doom**")[1:]
    assert "5.0000" in first and "7.0000" in second and "7.0000" not in first
    first, second = SECTIONS["scaling"](tmp_path, tmp_path).split("**doom")[1:]
    assert "5.0000" in first and "7.0000" in second and "7.0000" not in first


def test_trial_steps_are_made_once(tmp_path):
    asked = iter((320, 640))
    given = [remembered(tmp_path / "cpu", key, lambda: next(asked)) for key in "aab"]
    assert given == [320, 320, 640]


@pytest.mark.parametrize("seconds", [100.0, 350.0, 2000.0])
def test_a_run_and_its_validations_take_their_share_of_the_time(tiny, monkeypatch, seconds):
    step = 0.5
    monkeypatch.setattr(scaling, "try_steps", lambda _: Trial(peak_memory=0, step_seconds=step))
    cell = scaling.Cell(replace(tiny, validation_clips=16), 256)
    steps = scaling.steps_for(cell, Dense(), "footage", seconds)
    validations = (scale.POINTS + 1) * 16 * step / 3
    assert steps % scale.POINTS == 0 and steps * step + validations <= seconds
    assert (steps + scale.POINTS) * step + validations > seconds


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_envelope_is_what_nothing_cheaper_beats(points):
    found = frontier.envelope([points[::2], points[1::2]])
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]}
    assert set(found) == set(points) - beaten


def test_pixels_have_the_spread_that_the_model_expects():
    loader = NormalisedLoader.Config(source="digits", mean=-0.7, std=0.2, height=32, width=32)
    plain = VideoDataLoader.Config(source="digits", height=32, width=32)
    ours, theirs = (next(iter(config.build()))["video"] for config in (loader, plain))
    torch.testing.assert_close(ours, (theirs + 0.7) / 0.2 * 0.5)


def test_the_plan_has_every_method_and_sparse_ones_save_what_attention_takes(monkeypatch):
    monkeypatch.setitem(scaling.SIZES, "gpu", {"60m": scaling.SIZES["gpu"]["60m"]})
    monkeypatch.setitem(scaling.VIDEOS, "gpu", scaling.VIDEOS["gpu"][:1])
    lines = scaling.plan(scale.GPU, 300).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == 3
    for dense, vsa, bsa in zip(*[iter(cells)] * 3):
        assert [row[2] for row in (dense, vsa, bsa)] == ["dense", "vsa", "bsa"]
        of_attention = [float(row[3].replace(",", "")) for row in (dense, vsa, bsa)]
        assert of_attention[0] / of_attention[1] == pytest.approx(8, rel=0.03)
        assert of_attention[2] < of_attention[1]


def test_the_page_is_what_the_results_make_of_it(tmp_path):
    text = report.EVIDENCE.read_text()
    assert report.render(text, sections=report.evidence(tmp_path)) == text, "run benchmarks.report"
    for picture in tmp_path.glob("*.png"):
        assert (report.IMAGES / picture.name).is_file()


def test_clips_are_filmed_and_counted_for_the_page(tmp_path, monkeypatch, capsys):
    page = report.DATA.read_text()
    assert report.render(page, sections=report.DATA_SECTIONS) == page, "run benchmarks.report"
    still, moving = np.zeros((3, 120, 160, 3), np.uint8), np.zeros((2, 120, 160, 3), np.uint8)
    moving[1] = 40

    def filmed(options):
        (options.out / "train").mkdir()
        for n, frames in enumerate((still, moving)):
            write_lossless(options.out / "train" / f"{n}.mkv", frames)

    monkeypatch.setenv("HOME", str(tmp_path))  # decoded frames are kept there
    monkeypatch.setattr(clips, "record", filmed)
    monkeypatch.setattr(clips, "fetch_clips", lambda recipe: scene_folder(tmp_path / "videos"))
    assert clips.main(["--films", "2", "--results", str(tmp_path)]) == 0
    films, footage = read("clips", tmp_path)
    assert (films["clips"], films["cut"], films["still"]) == (2, 1, round(2 / 3, 5))
    assert films["motion"] == 20 and films["least_motion"] == 0
    assert (footage["videos"], footage["too_short"], footage["train"]) == (2, 1, 5)
    assert footage["validation"] == 1
    assert "| films | clips filmed a second" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        clips.main(["--films", "0"])


def scene_folder(folder):
    """A video of 129 frames of 15 a second, of which 32 are held out, and one of 7."""
    folder.mkdir()
    ramp = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None, None, None], (150, 120, 160, 3))
    write_lossless(folder / "long.mkv", np.ascontiguousarray(ramp))
    write_lossless(folder / "short.mkv", np.ascontiguousarray(ramp[:8]))
    return folder
