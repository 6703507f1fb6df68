"""The pages in docs/extend/ are complete: all their Python blocks run, in order, in an empty folder.

A block that begins with ```python no-test is left out. What a page asserts is checked; end a page with an assertion
that would fail if its extension did nothing.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from documents import blocks, run_python

from regnet_itk.anatomy.regions import REGION_FINDERS
from regnet_itk.metrics.registry import METRICS
from regnet_itk.networks.architectures import ARCHITECTURES
from regnet_itk.stages.registry import STAGES
from regnet_itk.transforms import registry as transform_types

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "extend").glob("*.md"))


@pytest.fixture
def tables_as_before(monkeypatch):
    """Forget what a page adds to the package's tables."""
    tables = REGION_FINDERS, METRICS, ARCHITECTURES, STAGES
    before = [dict(table) for table in tables]
    monkeypatch.setattr(transform_types, "_registered", list(transform_types._registered))
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page, tmp_path, monkeypatch, tables_as_before):
    if not blocks(page.read_text(encoding="utf-8"), "python"):
        pytest.skip("no Python to run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # a page may write a module and import it
    run_python(page)


PAGE = """
```python
from dataclasses import dataclass

@dataclass
class Point:
    x: "float"
```
```python no-test
raise SystemExit
```
```sh
ls
```
```python
later = Point(2.0)
assert later.x == height
```
"""


def test_blocks_share_their_names_and_those_marked_are_left_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run_python(page, {"height": 2.0}).later.x == 2.0


def test_a_block_with_a_title_is_a_module_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = tmp_path / "page.md"
    page.write_text('```python title="titled_block.py"\nheight = 2.5\n```\n```python\nimport titled_block as it\n```\n')
    assert run_python(page).it.height == 2.5


def test_an_error_names_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(AssertionError) as failed:
        run_python(page, {"height": 3.0})
    last = traceback.extract_tb(failed.tb)[-1]
    assert (last.filename, last.lineno) == (str(page), PAGE.count("\n", 0, PAGE.index("assert")) + 1)
