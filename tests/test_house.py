"""The project's own rules: imports point one way, docstrings run, FLOPs are the stated formula."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from setuptools import find_packages

import flexsparse
from flexsparse import VideoTiling
from flexsparse.flops import attention_flops

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "flexsparse": {"flexsparse", "torch", "triton"},
    "models": {"flexsparse", "models", "torch", "einops", "safetensors"},
}
EXTRAS = {
    "flexsparse/diffusers": {"diffusers", "safetensors"},
    "flexsparse/diffusers/generate": {
        "accelerate",
        "av",
        "diffusers",
        "safetensors",
        "transformers",
    },
    "flexsparse/diffusers/generate/compare": {"matplotlib"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        extra = EXTRAS.get(str(path.parent.relative_to(ROOT)), set())
        alien = imported(path) - MAY_IMPORT[package] - extra - set(sys.stdlib_module_names)
        assert not alien, f"{path} imports {alien}"


def test_what_torch_keeps_for_itself_is_named_in_one_file():
    private = re.compile(r"^\s*(?:from|import) torch(?:\.\w+)*\._", re.M)
    users = {p.name for p in (ROOT / "flexsparse").rglob("*.py") if private.search(p.read_text())}
    # the others: for known versions alone, and for runs of several processes
    assert users == {"torch_names.py", "inductor_choices.py", "ulysses.py"}


def test_train_imports_torchtitan_in_one_module():
    users = [p.name for p in (ROOT / "train").rglob("*.py") if "torchtitan" in imported(p)]
    assert users == ["titan.py"]


def test_train_imports_neither_tests_nor_benchmarks():
    for path in (ROOT / "train").rglob("*.py"):
        assert not imported(path) & {"tests", "benchmarks"}, path


def modules():
    files = sorted((ROOT / "flexsparse").rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]


@pytest.mark.parametrize("name", modules())
def test_docstrings_run(name):
    names = {n: getattr(flexsparse, n) for n in flexsparse.__all__} | {"torch": torch}
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_flops_are_the_stated_formula():
    assert attention_flops(8192, 4, 64) == 4 * 8192**2 * 4 * 64
    tiling = VideoTiling((8, 32, 32))
    sparse = attention_flops(8192, 4, 64, tiling=tiling, top_k=16)
    assert sparse == attention_flops(8192, 4, 64) // 8 + 4 * 128**2 * 4 * 64
    assert attention_flops(8192, 4, 64, backward=True) == 3.5 * attention_flops(8192, 4, 64)
    bsa = attention_flops(8192, 4, 64, tiling=tiling, top_k=16, q_rows=32)
    assert bsa == attention_flops(8192, 4, 64) // 16 + 2 * 128**2 * 4 * 64
    with pytest.raises(ValueError, match="together"):
        attention_flops(8192, 4, 64, top_k=16)
    with pytest.raises(ValueError, match="q_rows=32 is for BSA"):
        attention_flops(8192, 4, 64, q_rows=32)


@pytest.mark.parametrize(
    "video, share, ratio", [((16, 28, 52), 0.14, 14.26), ((40, 48, 80), 0.10, 19.95)]
)
def test_the_flops_table_is_what_the_formula_gives(video, share, ratio):
    tiling = VideoTiling(video)
    dense = attention_flops(tiling.tokens, 12, 128)
    top_k = tiling.num_tiles * share
    bsa = attention_flops(0, 12, 128, tiling=tiling, top_k=top_k, q_rows=32)
    row = f"| {tiling.tokens:,} | {share:.0%}".replace("%", " %")
    line = next(x for x in (ROOT / "docs/performance.md").read_text().splitlines() if row in x)
    assert f"{dense / bsa:.2f}" == f"{ratio:.2f}" and f"| {ratio:.2f} |" in line
    figures = [f"{x:.2e}".replace("e+", "e") for x in (dense, bsa)]
    assert all(figure in line for figure in figures)


def test_importing_the_library_does_not_load_the_compiler():
    code = "import sys, flexsparse; print('torch._inductor.choices' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout == "False\n", out.stderr


def test_the_wheel_holds_the_library_alone():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(ROOT, include=settings["packages"]["find"]["include"])
    assert sorted(packages) == [
        "flexsparse",
        "flexsparse.choice",
        "flexsparse.diffusers",
        "flexsparse.diffusers.generate",
        "flexsparse.diffusers.generate.compare",
        "flexsparse.engines",
        "flexsparse.kernels",
        "flexsparse.nn",
        "flexsparse.selfcheck",
        "flexsparse.stages",
    ]
    assert settings["package-data"] == {"flexsparse": ["py.typed"]}
    assert (ROOT / "flexsparse" / "py.typed").is_file()
