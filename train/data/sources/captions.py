"""Captions as condition tokens, without any weights: a word is a fixed random vector.

A real text encoder would place related words near each other; here two words are only the same or
different, which is enough for a model to tell the captions of a small dataset apart.
"""

import hashlib
import re

import numpy as np
import torch
from torch import Tensor


def embed_word(word: str, dim: int) -> Tensor:
    """The word's vector: float [dim], unit normal values that depend on the word's bytes alone.

    The values come out of a hash (SHAKE-256) through the normal quantile function, so they are the
    same in every process, on every machine and in every version of torch.
    """
    bits = np.frombuffer(hashlib.shake_256(word.encode()).digest(4 * dim), dtype="<u4")
    uniform = (torch.from_numpy(bits.astype(np.float64)) + 0.5) / 2**32
    return torch.special.ndtri(uniform).float()


def embed_caption(caption: str, tokens: int, dim: int) -> Tensor:
    """One token per word, in order: float [tokens, dim].

    Case and punctuation do not count, words past `tokens` are left out, and unused tokens are zero:
    the empty caption is all zeros.

    >>> embed_caption("A red kite.", 16, 64).shape
    torch.Size([16, 64])
    """
    context = torch.zeros(tokens, dim)
    for i, word in enumerate(re.findall(r"\w+", caption.lower())[:tokens]):
        context[i] = embed_word(word, dim)
    return context
