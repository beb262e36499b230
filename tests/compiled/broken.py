"""Copies of the project into which an error is put back."""

import shutil

from benchmarks.compiled.run import ROOT


def broken(folder, *edits):
    """A copy of the project in which pieces of files are replaced: (path, old, new), each once."""
    for package in ("flexsparse", "benchmarks", "models", "train"):
        shutil.copytree(ROOT / package, folder / package)
    for path, old, new in edits:
        text = (folder / path).read_text()
        assert text.count(old) == 1, f"{path} has no longer: {old}"
        (folder / path).write_text(text.replace(old, new))
    return folder


ARGUMENTS_OF_2_13 = [
    ("flexsparse/engines/flex.py", " and not configs.TAKES_OPTIONS", ""),
    (
        "flexsparse/engines/inductor_choices.py",
        "_fwd_configs(self, *args: Any, **options: Any) -> list[Any]:\n",
        "_fwd_configs(self, head_dim, dtype, device_type='cuda') -> list[Any]:\n"
        "            args, options = (head_dim, dtype, device_type), {}\n",
    ),
]
"""A class of choices that knows torch 2.13's arguments alone, and is installed for every torch."""
