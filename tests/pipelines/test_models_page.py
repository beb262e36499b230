"""Every video model of diffusers is sparsified, or refused for a reason of its own, and the page
of models says which."""

import inspect
from typing import Any

import diffusers.models.transformers
import diffusers.models.unets
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from models_table import PAGE, written
from small_models import SMALL
from torch import nn

from flexsparse.diffusers import VSA, sparsify
from flexsparse.diffusers.families import _FAMILIES, _REFUSED

ROOMS = diffusers.models.transformers, diffusers.models.unets
NO_VIDEO = set(  # pictures, sound and molecules
    """
    AceStepTransformer1DModel AuraFlowTransformer2DModel BriaFibo2Transformer2DModel
    BriaFiboTransformer2DModel BriaTransformer2DModel ChromaTransformer2DModel
    CogView3PlusTransformer2DModel CogView4Transformer2DModel DiTTransformer2DModel
    DreamLiteTransformer2DModel DreamLiteUNetModel ErnieImageTransformer2DModel
    Flux2Transformer2DModel Flux3Transformer2DModel FluxTransformer2DModel
    GlmImageTransformer2DModel HiDreamImageTransformer2DModel HunyuanDiT2DModel
    HunyuanImageTransformer2DModel Ideogram4Transformer2DModel JoyImageEditPlusTransformer3DModel
    JoyImageEditTransformer3DModel Kandinsky3UNet Krea2Transformer2DModel
    LongCatAudioDiTTransformer LongCatImageTransformer2DModel Lumina2Transformer2DModel
    LuminaNextDiT2DModel MiniMaxMusic3RVQDepthDecoder MiniMaxMusic3Transformer1DModel
    NucleusMoEImageTransformer2DModel OmniGenTransformer2DModel OvisImageTransformer2DModel
    PRXTransformer2DModel PixArtTransformer2DModel PriorTransformer QwenImage21Transformer2DModel
    QwenImageTransformer2DModel RFD4ProteinaTransformer SD3Transformer2DModel
    SanaTransformer2DModel StableAudio3DiTModel StableAudioDiTModel StableCascadeUNet T5FilmDecoder
    Transformer2DModel UNet1DModel UNet2DConditionModel UNet2DModel UVit2DModel
    ZImageTransformer2DModel
    """.split()
)
PARTS = {"MotionAdapter"}  # weights that a UNetMotionModel takes in
CLASSES = {
    name: kind
    for room in ROOMS
    for name, kind in inspect.getmembers(room, inspect.isclass)
    if issubclass(kind, ModelMixin)
}
LEAST: dict[str, Any] = {
    "LatteTransformer3DModel": dict(
        in_channels=4, patch_size=2, cross_attention_dim=8, caption_channels=8
    ),
    "TransformerTemporalModel": dict(in_channels=32),
    "SanaWMTransformer3DModel": dict(hidden_size=32, num_attention_heads=2, linear_head_dim=16),
}


def small_one(name: str) -> nn.Module:
    kind, given = CLASSES[name], LEAST.get(name, {})
    options = inspect.signature(kind.__init__).parameters
    layers = dict(num_layers=1) if "num_layers" in options else {}
    with torch.device("meta"):
        return kind(**layers, **given)


def test_every_model_of_diffusers_is_accounted_for():
    known = set(_FAMILIES), set(_REFUSED), NO_VIDEO, PARTS
    assert sum(map(len, known)) == len(set.union(*known))
    assert set.union(*known) == set(CLASSES)
    tried = {type(small.build()).__name__ for small in SMALL.values()}
    assert tried == set(_FAMILIES)


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_what_cannot_be_sparsified_says_why(name):
    model = small_one(name)
    with pytest.raises(ValueError) as told:
        sparsify(model, VSA())
    assert str(told.value) == f"{name} cannot be sparsified: {_REFUSED[name]}"


def test_the_page_says_what_was_built():
    page = PAGE.read_text()
    assert written(page) == page, f"python {__file__.replace('test_models_page', 'models_table')}"
