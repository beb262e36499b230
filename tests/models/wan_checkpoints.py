"""For the tests of Wan's checkpoints: models of any size and kind, and what is in a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.attention import VSA, Dense
from models.wan import WanConfig, WanModel, debug
from models.wan.checkpoint import CheckpointError, load

STEM = "diffusion_pytorch_model"
KINDS: dict[str, dict[str, Any]] = {
    "t2v": {},
    "i2v": dict(in_channels=36, image_dim=48),
    "flf2v": dict(in_channels=36, image_dim=48, pos_embed_seq_len=6),
}


@st.composite
def configs(draw: st.DrawFn, slots: tuple = (Dense(), VSA(), VSA(adapt=True))) -> WanConfig:
    heads = draw(st.integers(1, 3))
    return debug(
        dim=heads * draw(st.sampled_from([16, 32])),
        heads=heads,
        layers=draw(st.sampled_from([1, 2, 11])),
        ffn=draw(st.integers(1, 50)),
        text_dim=draw(st.integers(1, 20)),
        freq_dim=2 * draw(st.integers(1, 10)),
        out_channels=draw(st.integers(1, 16)),
        eps=draw(st.sampled_from([1e-6, 1e-5])),
        attention=draw(st.sampled_from(slots)),
        **KINDS[draw(st.sampled_from([*KINDS]))],
    )


def awake(config: WanConfig, seed: int = 0) -> WanModel:
    """No weight is zero, and dtypes are mixed: what diffusers keeps in fp32 stays so."""
    model = config.build()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter)
        if "modulation" not in name and "norm" not in name:
            parameter.data = parameter.data.bfloat16()
    return model


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Bit by bit, under the same names and in the same dtypes."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def read(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def refusal(path: Path, config: WanConfig | None = None, **options: Any) -> str:
    """The one line that refuses a checkpoint; a model on the meta device takes no memory by it."""
    with torch.device("meta"):
        model = (config or debug()).build()
    with pytest.raises(CheckpointError) as raised:
        load(model, path, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    (line,) = str(raised.value).splitlines()
    assert str(path) in line
    return line.replace(str(path), "PATH")


def change(folder: Path, drop: tuple[str, ...] = (), **add: torch.Tensor) -> None:
    weights = {k: x for k, x in read(folder).items() if not any(part in k for part in drop)}
    save_file(weights | add, folder / f"{STEM}.safetensors")
