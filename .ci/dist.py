"""`make dist`: wheel and sdist into out/dist, each tried in an empty environment.

An environment has pip, what it was given to install, and torch and triton with what they
require: links to the copies of this environment, since torch anew would be 3 GB each time. Nothing
else of this environment is seen there. `pip check` then says whether what the package declares is
there, and README's example runs, away from the checkout.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST, ALLOWED = ROOT / "out" / "dist", ("torch", "triton")


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions of these names, with all that they require, as installed here."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        try:
            required = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform, or optional
            continue
        if name not in found:
            found.add(name)
            left += [re.match(r"[\w.-]+", x)[0] for x in required if "extra ==" not in x]
    return found


def link(names: set[str], site: Path) -> None:
    """What belongs to these distributions, in another site-packages."""
    own = Path(sysconfig.get_paths()["purelib"])
    for name in names:
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(own / top)


def trial(artifact: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "-q", "-y", "setuptools"], check=True)  # venv's own, too old
    subprocess.run([*pip, "install", "-q", "--no-deps", artifact], check=True)
    link(closure(ALLOWED), site)
    subprocess.run([*pip, "check"], check=True)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert example
    alien = "import importlib.util as u; assert not any(map(u.find_spec, ['diffusers', 'pytest']))"
    code = f"{alien}\n{example[1]}\nimport flexsparse; print(flexsparse.__file__, out.shape)"
    subprocess.run([python, "-I", "-W", "ignore", "-c", code], check=True, cwd=folder)


def main() -> None:
    for old in DIST.glob("flexsparse-*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "build", "-q", "--outdir", DIST, ROOT], check=True)
    for artifact in sorted(DIST.glob("flexsparse-*")):
        with tempfile.TemporaryDirectory() as folder:
            trial(artifact, Path(folder))
        print(f"{artifact.name}: README's example runs", flush=True)


if __name__ == "__main__":
    main()
