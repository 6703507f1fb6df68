"""Compiled loops are left alone, with a word, where numba cannot be loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging
logging.basicConfig()
from regnet_itk.compiling import find_kernels
assert find_kernels("regnet_itk.data.cubic_kernels") is None
assert find_kernels("regnet_itk.data.cubic_kernels") is None
"""


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "OSError"])
def test_a_broken_numba_is_told_once(error, tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise {error}('no library')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": path}, check=False, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba cannot be loaded (no library)") == 1
