"""The blocks of code in a Markdown page, and a run of the Python ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, and the number of the page's line where the code begins."""

    code: str
    line: int


def blocks(text: str, language: str) -> list[Block]:
    """Return the blocks that begin with ```` ```language ```` alone; one marked ``no-test`` is left out."""
    return [
        Block(found["code"], text.count("\n", 0, found.start("code")) + 1)
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def run_python(page: Path, given: dict[str, object] | None = None) -> ModuleType:
    """Run all Python blocks of a page in order, as one module, and return the module.

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
    try:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, page, "exec", dont_inherit=True), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module
