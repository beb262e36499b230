"""Which videos a folder holds and what their captions are, whichever usual way it is laid out."""

import csv
import json
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

    Raises FileNotFoundError, and ValueError for metadata without these columns.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of videos at {folder}: set path to one")
    present = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(present) > 1:
        names = ", ".join(p.name for p in present)
        raise ValueError(f"{folder} has {len(present)} metadata files ({names}): keep one of them")
    if present:
        return _from_metadata(folder, present[0])
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise FileNotFoundError(f"{folder} holds no video: none of {', '.join(SUFFIXES)}")
    return [(p, _caption_beside(p, folder)) for p in found]


def _caption_beside(video: Path, folder: Path) -> str:
    text = video.with_suffix(".txt")
    if text.is_file():
        return " ".join(text.read_text(encoding="utf-8").split())
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
        videos.append((folder / row["file_name"], str(caption)))
    if not videos:
        raise ValueError(f"{metadata} names no video: it has no rows")
    return sorted(videos)


def _read_rows(metadata: Path) -> list[dict]:
    if metadata.suffix == ".csv":
        with open(metadata, newline="", encoding="utf-8-sig") as f:
            return list(csv.DictReader(f))
    if metadata.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError as e:
            raise ImportError(
                f"reading {metadata} takes pyarrow: pip install pyarrow, "
                "or write the table as metadata.csv or metadata.jsonl"
            ) from e
        return pyarrow.parquet.read_table(metadata).to_pylist()
    rows = []
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append({**json.loads(line)})
            except (ValueError, TypeError) as e:
                raise ValueError(f"{metadata}: line {number} is no JSON object: {e}") from e
    return rows
