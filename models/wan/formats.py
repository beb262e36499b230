"""The names of Wan's parameters and sizes in each format that checkpoints come in.

`wan` is Wan's own repository; `diffusers` is `WanTransformer3DModel`, in which FastVideo's VSA
checkpoints are as well: they hold `blocks.N.to_gate_compress`, our coarse gate, beside it. The fine
gate, which only pretraining has, is `blocks.N.to_gate_fine` in both, a name of ours. All tensors
have the same shape everywhere, so that a change of format is a change of names.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from models.wan.config import WanConfig

Format = Literal["wan", "diffusers"]
Shape = tuple[int, ...]

_IMAGE = "condition_embedder.image_embedder"
_OUTER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.emb_pos": f"{_IMAGE}.pos_embed",
    "img_emb.proj.0": f"{_IMAGE}.norm1",
    "img_emb.proj.1": f"{_IMAGE}.ff.net.0.proj",
    "img_emb.proj.3": f"{_IMAGE}.ff.net.2",
    "img_emb.proj.4": f"{_IMAGE}.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_PROJECTIONS = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}
_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _PROJECTIONS.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _PROJECTIONS.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_GATES = {
    "self_attn.slot.gate_coarse": "to_gate_compress",
    "self_attn.slot.gate_fine": "to_gate_fine",
}
_FIELDS = {
    "dim": "dim",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "num_layers": "layers",
    "ffn_dim": "ffn",
    "in_dim": "in_channels",
    "in_channels": "in_channels",
    "out_dim": "out_channels",
    "out_channels": "out_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "image_dim": "image_dim",
    "pos_embed_seq_len": "pos_embed_seq_len",
    "eps": "eps",
    "patch_size": "patch",
}
_FIXED = {  # what all of Wan's models have in common, as either format has it
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "window_size": ([-1, -1],),
    "text_len": (512,),
}
CLASSES: dict[Format, str] = {"wan": "WanModel", "diffusers": "WanTransformer3DModel"}


def to_key(name: str, format: Format) -> str:
    """The key in a checkpoint of the module's parameter `name`.

    >>> to_key("layers.3.self_attn.q.weight", "diffusers")
    'blocks.3.attn1.to_q.weight'
    """
    stem, dot, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, dot, kind = name, "", ""
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        part = _GATES.get(part, part if format == "wan" else _BLOCK.get(part, part))
        stem = f"blocks.{number}.{part}"
    elif format == "diffusers":
        stem = _OUTER.get(stem, stem)
    return f"{stem}{dot}{kind}"


def is_gate(key: str) -> bool:
    """Whether a checkpoint's key is of one of VSA's gates, in any format."""
    return any(f".{gate}." in key for gate in _GATES.values())


def is_ignored(key: str) -> bool:
    """Whether a key may be left over: of `norm_added_q`, which diffusers ignores as well."""
    return ".norm_added_q." in key


def detect_format(keys: Iterable[str]) -> Format | None:
    """The format that these keys are of; None where they are not of a Wan transformer."""
    stems = {key.removesuffix(".weight").removesuffix(".bias") for key in keys}
    hits = {f: len(stems & {to_key(name, f) for name in _OUTER}) for f in get_args(Format)}
    best = max(hits, key=lambda f: hits[f])
    return best if hits[best] > 1 else None  # other families have a patch_embedding, too


def sizes_of_shapes(shapes: Mapping[str, Shape], format: Format) -> dict[str, Any]:
    """What the shapes of a checkpoint say of a WanConfig's fields; all but `heads` and `eps`."""
    sizes: dict[str, Any] = {}

    def put(name: str, **axes: int) -> None:
        shape = shapes.get(to_key(name, format), ())
        sizes.update({field: shape[i] for field, i in axes.items() if i < len(shape)})

    put("patch_embedding.weight", dim=0, in_channels=1)
    put("text_embedding.0.weight", text_dim=1)
    put("time_embedding.0.weight", freq_dim=1)
    put("layers.0.ffn.0.weight", ffn=0)
    sizes |= dict(image_dim=None, pos_embed_seq_len=None)
    put("img_emb.proj.1.weight", image_dim=1)
    put("img_emb.emb_pos", pos_embed_seq_len=1)
    patch = shapes.get(to_key("patch_embedding.weight", format), ())[2:]
    head = shapes.get(to_key("head.head.weight", format), ())
    if len(patch) == 3 and head:
        sizes |= dict(patch=patch, out_channels=head[0] // (patch[0] * patch[1] * patch[2]))
    numbers = [int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key))]
    return sizes | dict(layers=1 + max(numbers, default=-1))


def sizes_of_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` of either format says of a WanConfig's fields."""
    named = {_FIELDS[k]: v for k, v in settings.items() if k in _FIELDS and v is not None}
    if "attention_head_dim" in settings and "heads" in named:
        named["dim"] = named["heads"] * settings["attention_head_dim"]
    if isinstance(named.get("patch"), list):
        named["patch"] = tuple(named["patch"])
    return named


def unreadable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of `sizes_of_json` in a `config.json` is no number that it could be: a size of whole
    numbers from 1 up, and an `eps` above 0."""
    numbers = {k: settings[k] for k in (*_FIELDS, "attention_head_dim") if k in settings}
    return {k: v for k, v in numbers.items() if v is not None and not _is_size(k, v)}


def _is_size(key: str, value: Any) -> bool:
    if key == "eps":
        return type(value) in (int, float) and 0 < value < math.inf
    sizes = value if key == "patch_size" and isinstance(value, list) else [value]
    return all(type(size) is int and size > 0 for size in sizes)


def unlike_wan(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` of either format says that the model here does not compute."""
    return {k: settings[k] for k in _FIXED if k in settings and settings[k] not in _FIXED[k]}


def to_json(config: WanConfig, format: Format) -> dict[str, Any]:
    """The `config.json` of a model: what that format's own code builds it from."""
    shared = dict(
        _class_name=CLASSES[format],
        patch_size=list(config.patch),
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn,
        num_layers=config.layers,
        cross_attn_norm=True,
        eps=config.eps,
    )
    if format == "wan":
        image = config.image_dim is not None or config.in_channels != config.out_channels
        kind = "flf2v" if config.pos_embed_seq_len else "i2v" if image else "t2v"
        return shared | dict(
            model_type=kind,
            dim=config.dim,
            num_heads=config.heads,
            in_dim=config.in_channels,
            out_dim=config.out_channels,
            text_len=512,
            qk_norm=True,
        )
    return shared | dict(
        num_attention_heads=config.heads,
        attention_head_dim=config.dim // config.heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        qk_norm="rms_norm_across_heads",
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
        pos_embed_seq_len=config.pos_embed_seq_len,
    )
