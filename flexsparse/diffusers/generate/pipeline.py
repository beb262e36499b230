"""The pipeline with its weights: loaded, with LoRA, sparse, and where it computes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.attention import Method, gates_at, make_sparse, read_gates
from flexsparse.diffusers.generate.folder import TEXT, Folder, guided
from flexsparse.diffusers.generate.lora import load_loras


def load(o: argparse.Namespace, folder: Folder) -> Any:
    """The pipeline in main memory, dense, with its LoRA; ValueError where diffusers cannot."""
    dtypes = {"default": getattr(torch, o.dtype), "vae": getattr(torch, o.vae_dtype)}
    given = {} if o.prompt_embeds is None else _without_texts(folder)
    try:
        pipe = folder.cls.from_pretrained(folder.path, dtype=dtypes, local_files_only=True, **given)
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, ImportError) as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{folder.path}: {' '.join(str(e).split())}") from e
    vae: Any = getattr(pipe, "vae", None)
    if hasattr(vae, "stride"):
        vae.enable_tiling()  # Allegro's has no other way
    if o.guidance is not None and guided(folder):
        pipe.guider = pipe.guider.new(guidance_scale=o.guidance)
    load_loras(pipe, o.lora, folder)
    return pipe


def processors_of(model: Any) -> dict[str, Any]:
    """Those of a model's self-attention layers, by name."""
    return {name: attn.processor for name, attn in family_of(model).layers(model)}


def sparsify_all(pipe: Any, o: argparse.Namespace, folder: Folder, method: Method) -> None:
    """Make all transformers of a pipeline sparse, or change the method of those that are."""
    for name, place in zip(folder.models, gates_at(o, folder)):
        model = getattr(pipe, name)
        make_sparse(model, o, method)
        read_gates(model, method, place, folder.path / name)


def place(pipe: Any, device: torch.device, offload: str | None) -> None:
    """Let the pipeline compute on a device, its weights there or brought there when due."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "group":
        streams = dict(use_stream=True) if device.type == "cuda" else {}
        pipe.enable_group_offload(device, offload_type="leaf_level", **streams)
    else:
        pipe.to(device)


def compile_blocks(pipe: Any, folder: Folder, **options: Any) -> None:
    """Compile the blocks of all transformers: a program for each size and attention, kept when
    another comes in between. `options` are torch.compile's."""
    limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = limit
    for name in folder.models:
        model = getattr(pipe, name)
        # not compile_repeated_blocks: CogVideoX's model does not say which they are
        for layer, _ in family_of(model).layers(model):
            block = model.get_submodule(layer.rpartition(".")[0])
            block.compile(fullgraph=True, dynamic=False, **options)


def at_sparsity(method: Method, sparsity: float) -> Method:
    return replace(method, sparsity=sparsity)


def _without_texts(folder: Folder) -> dict[str, None]:
    """The components that encode texts, as ``from_pretrained`` wants those that are not loaded."""
    expected, optional = folder.cls._get_signature_keys(folder.cls)
    return {name: None for name in {*expected, *optional} if name.startswith(TEXT)}
