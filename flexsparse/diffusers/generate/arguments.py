"""What the call of a pipeline is given: its own signature says what it takes."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.loading_utils import load_image
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexsparse.diffusers.generate.folder import Folder, guided, parameters_of

_JSON = {"str", "int", "float", "bool", "dict"}
Size = tuple[int, int, int]
_NAMES = {
    "negative_prompt": ("negative_prompt",),
    "steps": ("num_inference_steps",),
    "guidance": ("guidance_scale",),
    "guidance_2": ("guidance_scale_2",),
    "fps": ("frame_rate", "fps"),
}
_SIZE = ("num_frames", "frames", "segment_frame_length"), ("height",), ("width",)
_ENDS = "cu_seqlens"  # where the texts of a batch end: Kandinsky 5 reads the longest length
_OURS = "generator", "output_type", "return_dict"
_OPTIONS = _NAMES | {"size": sum(_SIZE, ()), "prompt": ("prompt",), "image": ("image",)}
_OF_OPTION = {name: option for option, names in _OPTIONS.items() for name in names}


def call_arguments(o: argparse.Namespace, folder: Folder) -> dict[str, Any]:
    """What all clips have in common.

    Raises:
        ValueError: in a line, what the pipeline does not take, or wants and was not given.
    """
    takes = parameters_of(folder.cls)
    found: dict[str, Any] = {}
    for option, names in _NAMES.items():
        if (value := getattr(o, option)) is not None:
            if option == "fps" and not {*names} & {*takes}:
                continue  # of the file alone
            if option == "guidance" and guided(folder):
                continue
            found[_one_of(names, option, folder)] = value
    if o.image is not None:
        found[_one_of(("image",), "image", folder)] = _image(o)
    for name, path in o.video:
        name = _one_of((name,), "video" if name == "video" else f"video {name}", folder)
        found[name] = _video(path)
    for name, value in o.call:
        _check_call(name, takes)
        found[_one_of((name,), f"call {name}", folder)] = value
    sound = takes.get("sample_audio")
    if sound and "audio_vae" not in folder.parts and found.get("sample_audio", sound.default):
        raise ValueError(f"{folder.path} has no audio_vae: give --call sample_audio=false")
    due = [n for n, p in takes.items() if p.default is p.empty and n != "prompt"]
    kinds = [kind for kind in ("image", "video") if kind in takes]
    if not due and any(f"{x.title()}To" in folder.cls.__name__ for x in kinds):  # None by default
        due = [] if {*kinds} & {*found} else kinds[:1]
    if lacking := [name for name in due if name not in found]:
        how = "--image FILE" if lacking[0] == "image" else f"--call {lacking[0]}=... or --as"
        how = f"--video {lacking[0]}=FILE" if "video" in lacking[0] else how
        raise ValueError(f"{folder.cls.__name__} wants {', '.join(lacking)}: give {how}")
    return found


def size_arguments(size: Size | None, folder: Folder) -> dict[str, int]:
    """Frames, height and width by their names; nothing for the pipeline's own."""
    if size is None:
        return {}
    return {_one_of(names, "size", folder): value for names, value in zip(_SIZE, size)}


def own_size(folder: Folder) -> Size | None:
    """The size that the pipeline's call has by default, where it says one."""
    takes = parameters_of(folder.cls)
    found = [next((takes[n].default for n in names if n in takes), None) for names in _SIZE]
    t, h, w = (x if isinstance(x, int) else None for x in found)
    return None if t is None or h is None or w is None else (t, h, w)


def own_fps(folder: Folder) -> int | None:
    """The frames a second that the pipeline's call has by default, where it says them."""
    takes = parameters_of(folder.cls)
    found = next((takes[n].default for n in _NAMES["fps"] if n in takes), None)
    return round(found) if isinstance(found, int | float) else None


def texts_of(o: argparse.Namespace, folder: Folder) -> list[dict[str, Any]]:
    """What each clip is given of texts: its prompt, or its row of each tensor in the file.

    Raises:
        ValueError: a file that is none, tensors that the pipeline does not take, that are not
            finite, or of several numbers of texts.
    """
    if o.texts is not None:
        name = _one_of(("prompt",), "prompt", folder)
        return [{name: text} for text in o.texts]
    path, takes = o.prompt_embeds, parameters_of(folder.cls)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"--prompt-embeds {path} is no safetensors file: {e}") from None
    for name, x in tensors.items():
        _one_of((name,), f"prompt-embeds {path}, {name}", folder)
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(f"--prompt-embeds {path}: {name} has numbers that are not finite")
    ends = [name for name in tensors if name.endswith(_ENDS)]
    counts = {name: len(x) if x.ndim else 0 for name, x in tensors.items() if name not in ends}
    most = max(counts.values(), default=0)
    if not most or {*counts.values()} - {1, most}:
        raise ValueError(
            f"--prompt-embeds {path} has {', '.join(f'{n} of {c}' for n, c in counts.items())} "
            f"texts: give [texts, ...], one for all or one for each"
        )
    like = {True: dict(dtype=getattr(torch, o.dtype)), False: {}}
    placed = {n: x.to(o.device, **like[x.is_floating_point()]) for n, x in tensors.items()}
    none = {
        name: None  # Allegro has a text by default, and refuses it beside tensors
        for name in ("prompt", "negative_prompt")
        if name in takes and takes[name].default is not None and f"{name}_embeds" in tensors
    }
    own = {name: len(x) > 1 and name not in ends for name, x in placed.items()}
    return [
        none | {n: x[i : i + 1] if own[n] else x for n, x in placed.items()} for i in range(most)
    ]


def _one_of(names: tuple[str, ...], option: str, folder: Folder) -> str:
    """The name that the pipeline's call has; ValueError, with what it takes, if it has none."""
    takes = parameters_of(folder.cls)
    if found := next((name for name in names if name in takes), None):
        return found
    flag = option.replace("_", "-") if option in _NAMES else option
    raise ValueError(
        f"--{flag}: {folder.cls.__name__} takes no {names[0]}{_elsewhere(names[0], folder)}; it "
        f"takes {', '.join(name for name in takes if name not in _OURS)}"
    )


def _check_call(name: str, takes: dict[str, inspect.Parameter]) -> None:
    """ValueError for what is not --call's to say."""
    if name in _OURS:
        raise ValueError(f"--call {name}: this command sets it by itself")
    if name in _OF_OPTION:
        flag = _OF_OPTION[name].replace("_", "-")
        raise ValueError(f"--call {name}: this command sets it by itself, give --{flag}")
    if name == "num_videos_per_prompt":
        raise ValueError(f"--call {name}: this command makes one at a time, give several --seed")
    said = {*re.findall(r"\w+", str(takes[name].annotation))} if name in takes else set()
    no_json = "Callable" in said or (said & {"Tensor", "FloatTensor", "Image"} and not said & _JSON)
    if no_json:
        raise ValueError(f"--call {name} is a {takes[name].annotation}, and --call takes JSON")


def _elsewhere(name: str, folder: Folder) -> str:
    """Which pipelines of the same family do."""
    package = sys.modules[folder.cls.__module__.rpartition(".")[0]]
    classes = [getattr(diffusers, n, None) for n in dir(package) if n.endswith("Pipeline")]
    able = [c.__name__ for c in classes if c is not None and name in parameters_of(c)]
    return f" (--as {' or '.join(able)} does)" if able else ""


def _image(o: argparse.Namespace) -> Any:
    if not o.image.is_file():
        raise ValueError(f"--image {o.image}: there is no such file")
    try:
        return load_image(str(o.image))
    except OSError as e:
        raise ValueError(f"--image {o.image} is no picture: {e}") from None


def _video(path: Path) -> list[Any]:
    """A file's frames, as pictures."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            return [frame.to_image() for frame in container.decode(video=0)]
    except (OSError, IndexError, FFmpegError) as e:
        raise ValueError(f"--video {path} is no video: {e}") from None
