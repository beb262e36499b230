import json
import sys

import pytest

from train.data.folder import SUFFIXES, list_videos


def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_captions_lie_beside_the_videos(tmp_path):
    a = touch(tmp_path / "b" / "deep" / "one.mp4")
    touch(tmp_path / "b" / "deep" / "one.txt", "a dog\nruns \n")
    b = touch(tmp_path / "two.MKV")
    touch(tmp_path / "two.txt", "a cat")
    touch(tmp_path / "readme.txt", "no video")
    assert list_videos(tmp_path) == [(a, "a dog runs"), (b, "a cat")]


def test_subfolders_are_classes(tmp_path):
    wanted = [
        (touch(tmp_path / "high_jump" / "a.avi"), "high jump"),
        (touch(tmp_path / "rowing" / "a.webm"), "rowing"),
        (touch(tmp_path / "x.mov"), ""),
    ]
    assert list_videos(tmp_path) == wanted


def test_every_suffix_is_a_video(tmp_path):
    files = [touch(tmp_path / f"v{suffix}") for suffix in SUFFIXES]
    assert sorted(files) == [p for p, _ in list_videos(tmp_path)]


@pytest.mark.parametrize("column", ["caption", "text"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_names_videos_and_captions(tmp_path, suffix, column):
    rows = [
        {"file_name": "clips/b.mp4", column: "two, with a comma", "other": "1"},
        {"file_name": "a.mp4", column: "one", "other": "2"},
    ]
    touch(tmp_path / "unlisted.mp4")
    file = tmp_path / f"metadata.{suffix}"
    if suffix == "csv":
        lines = [f'{r["file_name"]},{r["other"]},"{r[column]}"' for r in rows]
        file.write_text("\ufeff" + "\r\n".join([f"file_name,other,{column}", *lines]))
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), file)
    wanted = [(tmp_path / "a.mp4", "one"), (tmp_path / "clips/b.mp4", "two, with a comma")]
    assert list_videos(tmp_path) == wanted


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    touch(tmp_path / "metadata.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install pyarrow.*metadata\.csv"):
        list_videos(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("metadata.csv", "file,caption\na.mp4,one", ValueError, "file, caption.*needs file_name"),
        ("metadata.csv", "file_name,title\na.mp4,one", ValueError, "title.*needs.*caption"),
        ("metadata.csv", "file_name,caption\n", ValueError, "no rows"),
        ("metadata.jsonl", '{"file_name": "a", "text": ""}\n{oops', ValueError, "line 2"),
        ("metadata.jsonl", "[1, 2]", ValueError, "line 1"),
        ("metadata.csv", "file_name,text\na.mp4,caf\xe9", ValueError, "csv is not UTF-8"),
        ("metadata.csv", "file_name,text\na," + "x" * 200_000, ValueError, "csv.*limit"),
        ("metadata.jsonl", '{"text": "caf\xe9"}', ValueError, "jsonl is not UTF-8"),
        ("notes.md", "nothing", FileNotFoundError, "no video.*mp4"),
    ],
)
def test_folders_that_make_no_sense_say_so(tmp_path, name, content, error, says):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(error, match=says) as caught:
        list_videos(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_parquet_file_is_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    touch(tmp_path / "metadata.parquet", "no table at all" * 10)
    with pytest.raises(ValueError, match=r"metadata\.parquet is no Parquet table: ") as caught:
        list_videos(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_caption_in_another_encoding_keeps_what_can_be_read(tmp_path):
    video = touch(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_bytes("a caf\xe9 at night".encode("latin-1"))
    assert list_videos(tmp_path) == [(video, "a caf\ufffd at night")]


def test_two_metadata_files_are_one_too_many(tmp_path):
    touch(tmp_path / "metadata.csv")
    touch(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"2 metadata files.*keep one"):
        list_videos(tmp_path)


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_videos(tmp_path / "nowhere")
