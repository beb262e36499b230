import hashlib
import os
import subprocess
import sys

import torch

from train.data.sources.captions import embed_caption

CAPTION = "A red Kite, über den Dächern."


def test_another_process_embeds_the_same_bytes():
    code = (
        "import hashlib; from train.data.sources.captions import embed_caption as embed;"
        f"print(hashlib.sha256(embed({CAPTION!r}, 16, 64).numpy().tobytes()).hexdigest())"
    )
    mine = hashlib.sha256(embed_caption(CAPTION, 16, 64).numpy().tobytes()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert out.stdout.decode().strip() == mine


def test_the_values_stay_as_they_were_published():
    """A checkpoint trained on these vectors is worthless with others."""
    first = embed_caption("kite", 1, 4)[0]
    assert [round(x, 4) for x in first.tolist()] == [0.4799, 0.2084, 0.5283, 0.2349]


def test_words_are_tokens_in_order():
    both = embed_caption("red kite", 16, 64)
    assert torch.equal(both[0], embed_caption("red", 16, 64)[0])
    assert torch.equal(both[1], embed_caption("kite", 16, 64)[0])
    assert not both[2:].any() and both[:2].all()


def test_case_and_punctuation_do_not_count():
    assert torch.equal(
        embed_caption("A red, RED kite!", 8, 16), embed_caption("a red red kite", 8, 16)
    )


def test_long_and_empty_captions_fit():
    words = " ".join(f"w{i}" for i in range(40))
    assert torch.equal(embed_caption(words, 4, 16), embed_caption("w0 w1 w2 w3", 4, 16))
    assert not embed_caption("", 4, 16).any()


def test_vectors_are_unit_gaussian_and_unrelated():
    vectors = torch.stack([embed_caption(f"word{i}", 1, 256)[0] for i in range(256)])
    assert abs(vectors.mean()) < 0.02 and abs(vectors.std() - 1) < 0.02  # 5 sigma of 65,536 draws
    gram = vectors @ vectors.T / 256
    assert gram.fill_diagonal_(0).abs().max() < 0.4  # 6 sigma of a sum of 256 products
