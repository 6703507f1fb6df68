"""Settings for all tests."""

import signal

from hypothesis import settings

# The same cases every time and on every machine: a run that passed can be relied on to pass again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A script's background job, and all it starts, is deaf to Ctrl-C; tests that send it want programs that are not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
