"""The program regnet-itk, run in the tests' own process."""

from __future__ import annotations

import signal

import pytest

from regnet_itk.cli.main import main


def call(*arguments: object) -> int:
    """Run the program and return its exit status."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code
