"""What all tests of the stand-ins need."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True)
def handler():
    """The programs handle SIGTERM; pytest does not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
