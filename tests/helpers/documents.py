"""The blocks of code in a Markdown page, and a run of the Python ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<file>[\w.-]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of code, the number of the page's line where it begins, and its title, which is the name of a file."""

    code: str
    line: int
    file: str | None = None


def blocks(text: str, language: str) -> list[Block]:
    """Return the blocks that begin with ```` ```language ````, with or without a title; ``no-test`` leaves one out."""
    return [
        Block(found["code"], text.count("\n", 0, found.start("code")) + 1, found["file"])
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def run_python(page: Path, given: dict[str, object] | None = None) -> ModuleType:
    """Run all Python blocks of a page in order, as one module, and return the module.

    A block with the title "name.py" is no part of it: it is written to that file, from which later blocks may import.

    Errors name the page and its line. The module can be found in ``sys.modules`` meanwhile, as dataclasses need it.

    Parameters
    ----------
    page
        The Markdown file.
    given
        Names that the page takes for granted, with their values.
    """
    module = ModuleType(f"page_{page.stem}")
    module.__dict__.update(given or {})
    sys.modules[module.__name__] = module
    files: list[str] = []
    try:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            if block.file:
                Path(block.file).write_text(block.code, encoding="utf-8")
                files.append(block.file)
                continue
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, page, "exec", dont_inherit=True), module.__dict__)
    finally:
        for name in (module.__name__, *(Path(file).stem for file in files)):
            sys.modules.pop(name, None)
    return module
