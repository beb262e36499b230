"""A model is built without memory, so all that it holds must be filled."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainer_runs import tiny

from train.weights.initial import outline


class Scaled(nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("scale", torch.ones(3), persistent=persistent)


class Tabled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.table = torch.arange(4)


def outlined(tmp_path, model):
    """The outline of a run's model, which is a recipe of ours in place of a config."""
    config = tiny(tmp_path)
    config.model = SimpleNamespace(build=model)
    return outline(config)


@pytest.mark.parametrize("model, name", [(lambda: Scaled(False), "scale"), (Tabled, "inner.table")])
def test_tensors_that_nobody_would_fill_are_refused_in_a_line(tmp_path, model, name):
    with pytest.raises(ValueError, match=rf"no checkpoint has \(1, {name}\): make them buffers"):
        outlined(tmp_path, model)


def test_the_outline_takes_no_memory_and_keeps_what_checkpoints_have(tmp_path):
    model = outlined(tmp_path, lambda: Scaled(True))
    assert {name: x.is_meta for name, x in model.state_dict().items()} == dict.fromkeys(
        ("weight", "scale"), True
    )
