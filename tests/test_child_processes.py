"""Work in processes of its own."""

from __future__ import annotations

import atexit
import time

from regnet_itk.child_processes import Child, Done


def end_slowly(task, events):
    """Do nothing, and let the process take a moment to end, as one that has loaded much does."""
    atexit.register(time.sleep, task)
    return "done"


def test_a_process_that_has_nothing_more_to_do_ends_without_a_word(capfd):
    with Child(end_slowly) as child:
        child.give(1.0)
        assert child.receive() == Done("done")
        child.connection.close()
        time.sleep(0.5)  # it is ending when it is told to end
    assert capfd.readouterr().err == ""


def test_without_main_the_process_knows_the_modules_all_the_same():
    with Child(end_slowly, with_main=False) as child:
        child.give(0.0)
        assert child.receive() == Done("done")
