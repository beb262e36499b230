"""Pages and project files: what they link and name is there, and what stands twice agrees."""

import re
import tomllib
from pathlib import Path

import pytest

import flexsparse
import flexsparse.diffusers
import flexsparse.nn
import flexsparse.selfcheck

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)]*)\)", prose(page)):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`([\w.]+/(?:[\w/]*(?:\.(?:py|md|jsonl|toml|yml)|/))?)`", prose(page))
    ours = {path.name for path in ROOT.iterdir()} - {"out"}
    for name in named:
        assert name.split("/")[0] not in ours or (ROOT / name).exists(), name


def test_every_public_name_is_in_the_api():
    shown = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.M)
    modules = flexsparse, flexsparse.nn, flexsparse.diffusers, flexsparse.selfcheck
    for module in modules:
        for name in module.__all__:
            assert any(x.endswith(f".{name}") for x in shown), f"{module.__name__}.{name}"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "flexsparse.__version__"
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"release will be {flexsparse.__version__}." in changes


def test_commits_are_checked_by_what_make_lint_runs():
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile.split("\nlint:")[1].split("\n\n")[0].splitlines()[1:]
    hooks = re.findall(r"entry: (.*?), pass", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == [line.strip().replace("$(BIN)", ".venv/bin") for line in lint]


def test_ci_anywhere_is_the_one_script_and_makes_targets_that_there_are():
    assert "run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
    lines = re.findall(r"^(?:nice )?make (.*)$", (ROOT / ".ci/run").read_text(), re.M)
    made = [word for line in lines for word in line.split() if word.isalpha()]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(made) == {"test", "lint", "docs", "dist"} and set(made) <= set(targets)


def test_performance_is_told_in_a_sitting():
    assert (ROOT / "docs/performance.md").read_text().count("\n") <= 200
