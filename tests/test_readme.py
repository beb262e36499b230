"""README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_blocks_run(number):
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})


def test_there_is_an_example():
    assert BLOCKS
