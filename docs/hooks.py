"""What `mkdocs build` does beside: pages of the root, formulas as MathML, our docstrings."""

import html
import re
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
OF_THE_ROOT |= {"CHANGELOG.md": "changelog.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.S)
EXAMPLE = re.compile(r"^>>> .*?(?=^\s*$|\Z)", re.S | re.M)
ROLE = re.compile(r":(?:func|class|meth|mod):`~?([^`]+)`")


def on_files(files, config):
    """README and its like, which stand in the root, as pages of the site."""
    for name, page in OF_THE_ROOT.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        for other, place in OF_THE_ROOT.items():
            text = text.replace(f"]({other}", f"]({place}")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Pages that stand by themselves leave the room of a menu of pages to their text."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]


def on_page_content(content, **_):
    """TeX as MathML, which browsers draw by themselves."""

    def mathml(found):
        made = convert(html.unescape(found[3]), display="inline" if found[2] == "(" else "block")
        return f'<{found[1]} class="formula">{made}</{found[1]}>'

    return FORMULA.sub(mathml, content)


class Docstrings(griffe.Extension):
    """Examples as code, and names in Sphinx's roles as names."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", text)
