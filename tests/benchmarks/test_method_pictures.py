"""docs/methods.md shows the pictures that its script draws."""

import re

import torch

from benchmarks import method_pictures as pictures


def test_every_picture_of_the_page_is_drawn_and_shown(tmp_path):
    pictures.main(tmp_path)
    page = (pictures.IMAGES.parent / "methods.md").read_text()
    shown = re.findall(r"\]\(images/(.*?)\)", page)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)
    assert all((pictures.IMAGES / name).is_file() for name in shown)


def test_rules_admit_what_the_page_says_of_their_pictures():
    counts = {"topk": (8, 8), "threshold": (8, 3), "mass": (8, 2)}
    for name, rule in pictures.RULES.items():
        found = [int(rule(scores[None]).sum()) for scores in pictures.rows_of_scores()]
        assert tuple(found) == counts[name], name


def test_the_query_tile_chooses_itself():
    q = pictures.queries()
    chosen = pictures.vsa_tile_map(q, q, pictures.TILING, top_k=pictures.TOP_K)[0, 0]
    assert chosen[pictures.LOOKS, pictures.LOOKS] and int(chosen.sum()) == 24 * pictures.TOP_K
    assert torch.equal(q, pictures.queries()), "the scene is the same every time"
