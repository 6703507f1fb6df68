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


THREADS = """
import torch
torch.set_num_threads(1)
from regnet_itk.trust.costs import moved_costs
moved_costs(torch.rand(2, 9, 9, 9), torch.rand(2, 9, 9, 9), [(0, 0, 1)])
import numba
assert numba.threading_layer()  # its threads have started
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""


def test_numbas_threads_leave_torch_as_many_as_it_was_given():
    """OpenMP has one number for both; a run with one thread would go on with all, and sum in another order."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env={**environment, "NUMBA_NUM_THREADS": "2"}, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
