"""Rooms: imports between the folders of a package, and between its files, point one way."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = "flexsparse", "models", "train", "benchmarks"
# A package with rooms, or a room that has rooms of its own.
HOUSES = "flexsparse", "models", "models/wan", "train", "train/data", "benchmarks"


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    """The files of ours that a file imports anywhere in it: of ``from x import y`` y where y is a
    module, else x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                whole = ROOT.joinpath(*name.split("."))
                places = [whole.with_suffix(".py"), whole / "__init__.py"]
                places += [whole.parent.with_suffix(".py"), whole.parent / "__init__.py"]
                yield next(place for place in places if place.exists())


def room(path, house):
    """A folder of the house, or a file that stands beside the folders; None outside."""
    if house not in path.parents:
        return None
    parts = path.relative_to(house).parts
    return parts[0]


def arrows(house):
    """Which rooms each room imports. What only opens the house, its ``__init__`` and ``__main__``,
    may import all, and nothing imports it."""
    found = {}
    for path in files(house):
        mine = room(path, ROOT / house)
        if mine != "__init__.py":
            theirs = {room(other, ROOT / house) for other in imported(path)}
            found.setdefault(mine, set()).update(theirs - {mine, None})
    return found


@pytest.mark.parametrize("house", HOUSES)
def test_imports_between_rooms_point_one_way(house):
    found = arrows(house)
    assert len(found) > 1
    assert not [mine for mine, theirs in found.items() if "__init__.py" in theirs]
    TopologicalSorter(found).prepare()  # CycleError names the rooms


def test_the_library_has_the_order_of_the_page():
    page = (ROOT / "docs/design.md").read_text()
    (line,) = [x for x in page.splitlines() if x.count("` <- `") > 2]
    floors = [re.findall(r"`(\w+)`", part) for part in line.split("<-")]
    floor = {name: i for i, names in enumerate(floors) for name in names}
    found = arrows("flexsparse")
    assert set(floor) == {mine.removesuffix(".py") for mine in found}
    for mine, theirs in found.items():
        for other in theirs:
            below, above = (floor[x.removesuffix(".py")] for x in (other, mine))
            assert below < above, f"{mine} imports {other}"


def test_imports_between_files_point_one_way():
    every = [path for package in PACKAGES for path in files(package)]
    found = {path: set(imported(path)) - {path} for path in every}
    TopologicalSorter(found).prepare()


def test_a_circle_is_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize(
    "init",
    [path for package in PACKAGES for path in files(package) if path.name == "__init__.py"],
    ids=lambda path: str(path.parent.relative_to(ROOT)),
)
def test_every_room_says_in_ten_lines_what_it_is_for(init):
    said = ast.get_docstring(ast.parse(init.read_text()))
    assert said and len(said.splitlines()) <= 10
    begin = re.findall(r"\w+\.py\b|\w+/", said)
    assert any((init.parent / name).exists() for name in begin), "name a file to begin with"
