import json
import sys

import pytest

from train.data.sources.folder import (
    PATHS,
    PROMPTS,
    SUFFIXES,
    VALIDATION,
    list_videos,
    split_folder,
)


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


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_two_lists_line_by_line(tmp_path, paths, prompts):
    a, b = touch(tmp_path / "videos/b.mp4"), touch(tmp_path / "a.mp4")
    touch(tmp_path / "unlisted.mp4")
    touch(tmp_path / paths, "videos/b.mp4\n a.mp4\r\n")
    touch(tmp_path / prompts, "two, with\u2028a separator\n\n\n")
    assert list_videos(tmp_path) == [(b, ""), (a, "two, with\u2028a separator")]


def test_fastvideo_s_list(tmp_path):
    a, b = touch(tmp_path / "videos/a.mp4"), touch(tmp_path / "videos/deep/b.mp4")
    touch(tmp_path / "videos/unlisted.mp4")
    rows = [
        {"path": "deep/b.mp4", "cap": ["two", "another"], "fps": 16, "resolution": {"width": 8}},
        {"path": "a.mp4", "cap": "one"},
    ]
    touch(tmp_path / "videos2caption.json", json.dumps(rows))
    assert list_videos(tmp_path) == [(a, "one"), (b, "two")]


def test_a_list_of_paths_may_be_a_caption(tmp_path):
    video = touch(tmp_path / "videos.mp4")
    touch(tmp_path / "videos.txt", "many of them")
    assert list_videos(tmp_path) == [(video, "many of them")]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"videos.txt": "a.mp4"}, "videos.txt has no list of captions beside it"),
        ({"videos.txt": "a", "prompt.txt": "x", "prompts.txt": "x"}, "has prompt.txt and prompts"),
        ({"videos.txt": "a\nb", "prompt.txt": "x"}, "has 2 lines, prompt.txt 1: give a path"),
        ({"videos.txt": "a\n\nc", "prompt.txt": "x\ny\nz"}, "no line of paths empty"),
        ({"videos.txt": "", "prompt.txt": ""}, "videos.txt names no video"),
        ({"videos2caption.json": "[]"}, "videos2caption.json names no video"),
        ({"videos2caption.json": '{"path": 1}'}, 'no list of objects with "path" and "cap"'),
        ({"videos2caption.json": '[{"path": "a"}]'}, "no list of objects .*KeyError: 'cap'"),
        ({"videos2caption.json": '[{"path": "a", "cap": []}]'}, "no list of objects"),
        ({"videos2caption.json": "[", "metadata.csv": ""}, "2 metadata files"),
        ({"videos2caption.json": "["}, "no list of objects .*JSONDecodeError"),
    ],
)
def test_lists_that_make_no_sense_say_so(tmp_path, files, says):
    for name, text in files.items():
        touch(tmp_path / name, text)
    with pytest.raises(ValueError, match=says) as caught:
        list_videos(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_caption_in_jsonl_may_hold_any_line_separator(tmp_path):
    row = json.dumps({"file_name": "a.mp4", "text": "one\u2028two\x85three"}, ensure_ascii=False)
    touch(tmp_path / "metadata.jsonl", row)
    assert list_videos(tmp_path) == [(tmp_path / "a.mp4", "one\u2028two\x85three")]


@pytest.mark.parametrize("name", VALIDATION)
def test_subfolders_may_be_the_splits(tmp_path, name):
    assert split_folder(tmp_path, "train") is None
    (tmp_path / "train").mkdir()
    assert split_folder(tmp_path, "validation") is None
    (tmp_path / name).mkdir()
    assert split_folder(tmp_path, "train") == tmp_path / "train"
    assert split_folder(tmp_path, "validation") == tmp_path / name
