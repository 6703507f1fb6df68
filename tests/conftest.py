"""Settings for all tests."""

import os
import signal
import sys

import pytest
from hypothesis import settings

from regnet_itk.threads import wait_briefly

# So many threads for all that computes, here and in programs that tests start: the same numbers on every machine. To be
# set before any of these libraries is loaded. Torch's threads wait for each other, so that one is enough for it.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="2")
wait_briefly()

# The same cases every time and on every machine: a run that passed can be relied on to pass again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A script's background job, and all it starts, is deaf to Ctrl-C; tests that send it want programs that are not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """Give every test Torch with one thread, whatever the test before it has set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


pytest_plugins = ["other_packages"]
