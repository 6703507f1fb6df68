"""A batch as a program of its own, which can be killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

START = """
import sys
sys.path[:0] = {paths!r}
from shifted_pairs import TRUE, shift
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.batch.run import plan_batch, run_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.pairs import read_pairs

if __name__ == "__main__":
    settings = BatchSettings((shift({log!r}, *TRUE, Wait={wait!r}, Warp="true"),))
    plan = plan_batch(read_pairs({pairs!r}), {out!r}, settings)
    run_batch(plan, LocalEngine(2))
"""


def start(folder, wait):
    """Start to register the pairs in `data/pairs.csv` to `out`, two at a time; each stage waits for some seconds."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    script = folder / "start.py"
    names = {name: str(folder / name) for name in ("log", "out")}
    script.write_text(START.format(paths=paths, wait=wait, pairs=str(folder / "data" / "pairs.csv"), **names))
    return subprocess.Popen([sys.executable, script])


def wait_for(what, seconds=60):
    """Wait until something is true."""
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.02)


def children_of(pid):
    """Return the processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return found
