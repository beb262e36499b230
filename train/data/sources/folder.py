"""Which videos a folder holds and what their captions are, whichever usual way it is laid out."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from train.data.sources.walk import files_below

SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".3gp"),
    *(".ogv", ".ts", ".mts", ".m2ts"),
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PATHS = ("videos.txt", "video.txt")
PROMPTS = ("prompt.txt", "prompts.txt", "caption.txt", "captions.txt")
FASTVIDEO = "videos2caption.json"
VALIDATION = ("validation", "valid", "val")


def list_videos(folder: Path) -> list[tuple[Path, str]]:
    """The folder's videos with their captions, in order of name.

    Four layouts, told apart by what is there:
    - `metadata.csv`, `.jsonl` or `.parquet` with the columns `file_name` (relative to the folder)
      and `caption` or `text`: the videos that it names.
    - `videos.txt` and `prompt.txt` (finetrainers, CogVideoX; also `video.txt`, and `prompts.txt`,
      `caption.txt` or `captions.txt`): a path, relative to the folder, and a caption in each line.
    - `videos2caption.json` (FastVideo): a list of objects with `path`, relative to the folder's
      `videos`, and `cap`, a caption or a list of them, of which the first is taken.
    - otherwise every video at any depth, behind links too (`files_below`); its caption is the
      `.txt` file of the same stem beside it, else the name of the subfolder that it is in (its
      class), else "".

    A caption file is read as UTF-8, with U+FFFD for what is not. A video that is a broken link is
    listed too: who reads it can say what is wrong.

    Raises FileNotFoundError, and ValueError for a list that cannot be read or lacks a part.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of videos at {folder}: set path to one")
    present = [folder / name for name in (*METADATA, FASTVIDEO) if (folder / name).is_file()]
    paths = [p for p in _present(folder, PATHS) if not _is_caption(p)]
    present += paths
    if len(present) > 1:
        names = ", ".join(p.name for p in present)
        raise ValueError(f"{folder} has {len(present)} metadata files ({names}): keep one of them")
    if paths:
        return _from_lines(folder, paths[0])
    if present:
        read = _from_fastvideo if present[0].name == FASTVIDEO else _from_metadata
        return read(folder, present[0])
    found = files_below(folder, SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder} holds no video: none of {', '.join(SUFFIXES)}")
    return [(p, _caption_beside(p, folder)) for p in found]


def split_folder(folder: Path, split: str) -> Path | None:
    """The subfolder that holds a split, of a folder that has one for each: `train`, and one of
    VALIDATION; else None, where the splits are to be made."""
    held = _present(folder, VALIDATION, os.path.isdir)
    if not held or not (folder / "train").is_dir():
        return None
    return folder / "train" if split == "train" else held[0]


def _present(folder: Path, names: Sequence[str], is_one: Callable = os.path.isfile) -> list[Path]:
    return [folder / name for name in names if is_one(folder / name)]


def _is_caption(text: Path) -> bool:
    """Whether a video of the same stem lies beside it."""
    return any(text.with_suffix(suffix).exists() for suffix in SUFFIXES)


def _caption_beside(video: Path, folder: Path) -> str:
    text = video.with_suffix(".txt")
    if text.is_file():
        return " ".join(text.read_text(encoding="utf-8", errors="replace").split())
    if video.parent == folder:
        return ""
    return video.parent.name.replace("_", " ").replace("-", " ")


def _from_metadata(folder: Path, metadata: Path) -> list[tuple[Path, str]]:
    videos = []
    for number, row in enumerate(_read_rows(metadata), 1):
        caption = row.get("caption", row.get("text"))
        if not row.get("file_name") or caption is None:
            raise ValueError(
                f"{metadata}: row {number} has the columns {', '.join(map(str, row))}; "
                "it needs file_name and caption (or text)"
            )
        videos.append((folder / str(row["file_name"]), str(caption)))
    if not videos:
        raise ValueError(f"{metadata} names no video: it has no rows")
    return sorted(videos)


def _from_lines(folder: Path, paths: Path) -> list[tuple[Path, str]]:
    prompts = _present(folder, PROMPTS)
    if len(prompts) != 1:
        found = " and ".join(p.name for p in prompts) or "no list of captions"
        raise ValueError(
            f"{paths} has {found} beside it: it needs one prompt.txt, of as many lines"
        )
    names, captions = ([x.strip() for x in _lines(p)] for p in (paths, prompts[0]))
    while captions and not captions[-1] and len(captions) > len(names):
        captions.pop()
    if len(names) != len(captions) or not all(names):
        raise ValueError(
            f"{paths} has {len(names)} lines, {prompts[0].name} {len(captions)}: "
            "give a path and a caption for each video, no line of paths empty"
        )
    if not names:
        raise ValueError(f"{paths} names no video: it has no lines")
    return sorted((folder / name, caption) for name, caption in zip(names, captions))


def _from_fastvideo(folder: Path, listing: Path) -> list[tuple[Path, str]]:
    try:
        rows = json.loads(_read_text(listing))
        videos = [(folder / "videos" / row["path"], row["cap"]) for row in rows]
        found = [(file, cap if isinstance(cap, str) else str(cap[0])) for file, cap in videos]
    except (ValueError, TypeError, LookupError, AttributeError) as e:
        raise ValueError(
            f'{listing} is no list of objects with "path" and "cap" ({type(e).__name__}: {e})'
        ) from e
    if not found:
        raise ValueError(f"{listing} names no video: it is empty")
    return sorted(found)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file} is not UTF-8 ({e}): save it as UTF-8") from e


def _lines(file: Path) -> list[str]:
    """Split at line feeds alone: a caption may hold others of Unicode's line separators."""
    return _read_text(file).removesuffix("\n").split("\n") if file.stat().st_size else []


def _read_rows(metadata: Path) -> list[dict]:
    if metadata.suffix == ".parquet":
        return _read_parquet(metadata)
    if metadata.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(_read_text(metadata), newline="")))
        except csv.Error as e:
            raise ValueError(f"{metadata} is no table of comma-separated values: {e}") from e
    rows = []
    for number, line in enumerate(_lines(metadata), 1):
        if line.strip():
            try:
                rows.append({**json.loads(line)})
            except (ValueError, TypeError) as e:
                raise ValueError(f"{metadata}: line {number} is no JSON object: {e}") from e
    return rows


def _read_parquet(metadata: Path) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError as e:
        raise ValueError(
            f"reading {metadata} takes pyarrow: pip install pyarrow, "
            "or write the table as metadata.csv or metadata.jsonl"
        ) from e
    try:
        return pyarrow.parquet.read_table(metadata).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        said = " ".join(str(e).split())
        raise ValueError(f"{metadata} is no Parquet table: {said}") from e
