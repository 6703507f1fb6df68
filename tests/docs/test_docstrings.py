"""The examples in docstrings run and give what they say, in an empty folder."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import regnet_itk

PACKAGE = Path(regnet_itk.__file__).parent
FILES = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8")]
MODULES = sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES)

# What registers, takes long, needs files of a run or changes what is known; README and docs have examples that run.
WITHOUT = {"compare", "read_pairs", "register", "registration_method", "repair_folder",
           "save_model", "write_comparison", "write_phantom"}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_give_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_every_public_function_has_an_example():
    functions = {name for name in regnet_itk.__all__ if not isinstance(getattr(regnet_itk, name), type)}
    lacking = {name for name in functions if ">>> " not in getattr(regnet_itk, name).__doc__}
    assert lacking <= WITHOUT
