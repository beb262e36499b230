"""For the tests of the generator: folders of small random pipelines, with text encoders or without,
and its command."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file
from small_models import HEADS, SMALL
from small_pipelines import PIPELINES, wan_vae
from tokenizers import Tokenizer, models, pre_tokenizers

from flexsparse.diffusers.generate.__main__ import main

WORDS = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "wall", "blue"])}
BARE = PIPELINES | {"vace": replace(PIPELINES["wan"], cls=diffusers.WanVACEPipeline)}
diffusers.utils.logging.set_verbosity_error()


def with_control() -> Any:
    """VACE's transformer for the small VAE: 2 x 4 channels of control, and 8 x 8 of its mask."""
    sizes = dict(in_channels=4, out_channels=4, text_dim=8, ffn_dim=32, num_layers=1, freq_dim=16)
    torch.manual_seed(0)
    control = dict(vace_layers=[0], vace_in_channels=72)
    return diffusers.WanVACETransformer3DModel(**HEADS, **sizes, **control).eval()


def write_bare(name: str, folder: Path) -> Path:
    """A family's pipeline without text encoders, and `texts.safetensors` beside its parts, of two
    texts."""
    small = BARE[name]
    model = with_control() if name == "vace" else SMALL[name].model(0)
    small.build(model).save_pretrained(folder)
    save_file({n: x.contiguous() for n, x in small.texts().items()}, folder / "texts.safetensors")
    return folder


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def text_encoder(kind: str) -> Any:
    model = getattr(transformers, kind)
    sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=len(WORDS))
    torch.manual_seed(1)
    return model(model.config_class(**sizes)).eval()


def write_wan(folder: Path) -> Path:
    pipe = PIPELINES["wan"].build(SMALL["wan"].model(0))
    pipe.register_modules(text_encoder=text_encoder("UMT5EncoderModel"), tokenizer=tokenizer())
    pipe.save_pretrained(folder)
    return folder


def write_ltx(folder: Path) -> Path:
    pipe = PIPELINES["ltx"].build(SMALL["ltx"].model(0))
    pipe.register_modules(text_encoder=text_encoder("T5EncoderModel"), tokenizer=tokenizer())
    pipe.save_pretrained(folder)
    return folder


def write_pair(folder: Path) -> Path:
    """Image to video by two transformers, as Wan 2.2's."""
    sizes = dict(in_channels=12, out_channels=4, text_dim=8, ffn_dim=32, num_layers=2, freq_dim=16)
    pair = {}
    for seed, name in enumerate(("transformer", "transformer_2")):
        torch.manual_seed(seed)
        pair[name] = diffusers.WanTransformer3DModel(**HEADS, **sizes).eval()
    torch.manual_seed(0)
    diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae().eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        boundary_ratio=0.8,
        **pair,
    ).save_pretrained(folder)
    texts = {n: x[:1].contiguous() for n, x in PIPELINES["wan"].texts().items()}
    save_file(texts, folder / "texts.safetensors")
    return folder


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan(tmp_path_factory.mktemp("wan") / "pipeline")


def generate(pipeline: Path, out: Path, *options: str, prompt: str = "a red wall") -> int:
    """The command on a small clip in two steps; options that come later win."""
    text = [] if any("--prompt" in option for option in options) else ["--prompt", prompt]
    small = ["--size", "9x48x80", "--steps", "2", "--device", "cpu"]
    return main([str(pipeline), "--out", str(out), *text, *small, *options])


def refused(capsys: Any, pipeline: Path, out: Path, *options: str) -> str:
    """The one line on stderr; nothing is written."""
    before = sorted(out.parent.rglob("*"))
    capsys.readouterr()
    assert generate(pipeline, out, *options) == 2
    assert sorted(out.parent.rglob("*")) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
