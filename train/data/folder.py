"""Which videos a folder holds and what their captions are, whichever usual way it is laid out."""

import csv
import io
import json
import os
from pathlib import Path

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def list_videos(folder: Path) -> list[tuple[Path, str]]:
    """The folder's videos with their captions, in order of name.

    Two layouts, told apart by what is there:
    - `metadata.csv`, `.jsonl` or `.parquet` with the columns `file_name` (relative to the folder)
      and `caption` or `text`: the videos that it names.
    - otherwise every video at any depth; its caption is the `.txt` file of the same stem beside it,
      else the name of the subfolder that it is in (its class), else "".

    A caption file is read as UTF-8, with U+FFFD for what is not. A video that is a broken link is
    listed too: who reads it can say what is wrong.

    Raises FileNotFoundError, and ValueError for metadata that cannot be read or lacks a column.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of videos at {folder}: set path to one")
    present = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(present) > 1:
        names = ", ".join(p.name for p in present)
        raise ValueError(f"{folder} has {len(present)} metadata files ({names}): keep one of them")
    if present:
        return _from_metadata(folder, present[0])
    named = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = sorted(p for p in named if not os.path.isdir(p))
    if not found:
        raise FileNotFoundError(f"{folder} holds no video: none of {', '.join(SUFFIXES)}")
    return [(p, _caption_beside(p, folder)) for p in found]


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


def _read_rows(metadata: Path) -> list[dict]:
    if metadata.suffix == ".parquet":
        return _read_parquet(metadata)
    try:
        text = metadata.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{metadata} is not UTF-8 ({e}): save it as UTF-8") from e
    if metadata.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as e:
            raise ValueError(f"{metadata} is no table of comma-separated values: {e}") from e
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
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
