"""docs/evidence.md is made of rows: whole comparisons, each scale and source by itself."""

import json

from benchmarks import report
from benchmarks.evidence.copies import MIXED
from benchmarks.evidence.page import SECTIONS
from benchmarks.evidence.scale import METHODS


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
    assert "evidence-ablations-cpu-doom.png" in first and "ablations-gpu-doom.png" in second
    first, second = SECTIONS["scaling"](tmp_path, tmp_path).split("**doom")[1:]
    assert "5.0000" in first and "7.0000" in second and "7.0000" not in first


def test_what_a_step_costs_is_the_mean_of_the_seeds_and_timed_on_every_gpu(tmp_path):
    cost = {"dense": ((40, 40), 4.0), "vsa": ((10, 10), 2.0), "bsa": ((5, 10), 1.0)}
    rows = [
        made_up(name=name, seed=seed, scale=of, attention_flops=flops, step_seconds=seconds)
        for of in ("cpu", "gpu", "gpu-120m")
        for name, (of_seeds, seconds) in cost.items()
        for seed, flops in enumerate(of_seeds)
    ]
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cpu, gpu, larger = SECTIONS["parity"](tmp_path, tmp_path).split("**doom**")[1:]
    assert "loss after 240 FLOPs" in cpu and "time" not in cpu
    assert "| 2.50 | 4.00 |\n" in cpu and "| 2.86 | 5.33 |\n" in cpu
    for timed in (gpu, larger):
        assert "| 2.50 | 4.00 | 2.00 |\n" in timed and "| 2.86 | 5.33 | 4.00 |\n" in timed


def test_sizes_come_in_their_order_with_what_each_gives_to_the_fit(tmp_path):
    sizes = {"cpu-d128-1": (1_000_000, 5.0, 3.0), "cpu-d64-1": (240_000, 4.0, 2.0)}
    rows = [
        made_up(name=name, parameters=n, scale=of, validation=[[8, first], [16, last]])
        | dict(experiment="scaling")
        for of, (n, first, last) in sizes.items()
        for name in METHODS
    ]
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = SECTIONS["scaling"](tmp_path, tmp_path)
    assert "loss at the end (steps): 0.24M, 1M |" in made
    assert (
        "| BSA | 2.0000 (16), 3.0000 (16) | " in made and "| 2, 0 | 1.00 (1.00 to 1.00) |" in made
    )


def test_the_page_is_what_the_results_make_of_it(tmp_path):
    text = report.EVIDENCE.read_text()
    assert report.render(text, report.evidence(tmp_path)) == text, "run benchmarks.report"
    for picture in tmp_path.glob("*.png"):
        assert (report.IMAGES / picture.name).is_file()


def test_where_tiles_mix_contents_what_few_tiles_with_most_copies_allow_is_told(tmp_path):
    floors = dict(patch_floor=2.0, tile_floor=2.0, floor=1.0, others_floor={"3": 1.5, "7": 1.25})
    kind = floors | dict(experiment="copies", looks=[], by_chance=0.25)
    rows = [
        made_up(name=name, data=task, finds=[found] if found else [], **kind)
        for task in ("shuffle", MIXED[1])
        for name, found in (("its own tile", 0), ("dense", 0), ("vsa", 0.5), ("vsa, 8 tiles", 0.75))
    ]
    rows[-1]["parameters"] = 2_000_000
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = SECTIONS["copies"](tmp_path, tmp_path)
    assert page.startswith("1.0M parameters"), "of those without gates"
    _, _, mixed = page.partition("**Tiles that hold parts of several contents**")
    assert "| the 3 others that tell most | the 7 others" in mixed
    line = "| 2.000 | 1.000 | 50% | 75% | 100% | 100% | - | 100% | - | 50% | - | 75% | 25% |"
    assert f"| shuffle {line}" in mixed and f"| {MIXED[1]} {line}" in mixed
    assert "tiles of VSA with copies, by layer | of VSA without its coarse stage |" in mixed
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    assert "Tiles that hold parts" not in SECTIONS["copies"](tmp_path, tmp_path)


def test_adaptation_on_copies_is_told_before_halfway_and_at_the_end(tmp_path):
    seen = [
        [0, dict(held=[0.5, 0.9], finds=[0.25, 0.75])],
        [8, dict(held=[0.6, 0.9], finds=[0.25, 0.75])],
        [16, dict(held=[0.7, 0.8], finds=[0.25, 0.5])],
    ]
    kind = dict(experiment="copies adaptation", data="loop")
    rows = [made_up(name=name, **kind) for name in ("dense before", "dense on")]
    rows += [made_up(name="vsa at once, distilled", watched=seen, **kind)]
    (tmp_path / "evidence.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = SECTIONS["copies_adaptation"](tmp_path, tmp_path)
    assert "| dense on | 2.000 / 1.500 / 1.000 | - | - |" in page and "dense before" not in page
    line = "| VSA at once, distilled | 2.000 / 1.500 / 1.000 | 50% / 60% / 70%; 90% / 90% / 80% |"
    assert f"{line} 25% / 25% / 25%; 75% / 75% / 50% |" in page
