"""A process that was forked from one in which Torch had worked: an error, not a wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, torch
from regnet_itk.errors import RegistrationError
from regnet_itk.networks.devices import find_device, limited_threads
from regnet_itk.networks.model import load_model, shipped_models

def work(threads):
    try:
        find_device("cpu")
        with limited_threads(threads):
            return float(torch.ones(300, 300, 300).sum())
    except RegistrationError as error:
        return str(error)

torch.set_num_threads(2)
if BEFORE:
    work(2)
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply_async(work, [THREADS]).get(60))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("before", "threads", "said"), [(True, 2, "'spawn'"), (True, 1, "'spawn'"), (False, 2, "27000000.0")]
)
def test_a_fork_after_torch_has_worked_is_told_to_spawn(before, threads, said):
    program = PROGRAM.replace("BEFORE", str(before)).replace("THREADS", str(threads))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert said in ended.stdout, ended.stderr
