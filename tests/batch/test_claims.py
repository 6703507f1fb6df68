"""Of all processes that want to work on something, one does; and a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import time

import pytest

from regnet_itk.batch import claims
from regnet_itk.batch.claims import take_claim
from regnet_itk.errors import OutputError


def test_one_at_a_time(tmp_path):
    first = take_claim(tmp_path / "claims", "a.b")
    assert first is not None
    assert first.holds()
    assert take_claim(tmp_path / "claims", "a.b") is None
    with take_claim(tmp_path / "claims", "a"), take_claim(tmp_path / "claims", "a.b~1"):
        first.release()
        assert [file.name for file in (tmp_path / "claims").iterdir() if file.name.startswith("a.b~1.")] == []
    with take_claim(tmp_path / "claims", "a.b"):
        pass
    assert not any((tmp_path / "claims").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write to the output folder '.*claims'"):
        take_claim(tmp_path / "claims", "a")


def _take_and_die(folder):
    take_claim(folder, "a")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_claim(folder):
    """Let a process claim "a" and be killed."""
    child = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(folder,))
    child.start()
    child.join()
    assert [file.name for file in folder.iterdir()] == ["a~1.claim"]


def test_the_claim_of_a_dead_process_of_this_machine_ends_at_once(tmp_path):
    leave_claim(tmp_path)
    with take_claim(tmp_path, "a") as claim:
        assert claim.holds()
        assert [file.name for file in tmp_path.iterdir()] == ["a~2.claim"]
    assert not any(tmp_path.iterdir())


def test_that_of_another_machine_ends_when_it_was_not_heard_of(tmp_path, monkeypatch):
    leave_claim(tmp_path)
    monkeypatch.setattr(claims, "_this_machine", lambda: "another")
    assert take_claim(tmp_path, "a") is None
    os.utime(tmp_path / "a~1.claim", (time.time() - claims.LEASE + 60,) * 2)
    assert take_claim(tmp_path, "a") is None
    os.utime(tmp_path / "a~1.claim", (time.time() - claims.LEASE - 60,) * 2)
    with take_claim(tmp_path, "a") as claim:
        assert claim.holds()


def test_one_that_works_lets_itself_be_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_BEAT", 0.02)
    with take_claim(tmp_path, "a"):
        os.utime(tmp_path / "a~1.claim", (0, 0))
        ends = time.monotonic() + 20
        while (tmp_path / "a~1.claim").stat().st_mtime < 1 and time.monotonic() < ends:
            time.sleep(0.01)
        assert (tmp_path / "a~1.claim").stat().st_mtime > 1


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_only_the_time_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    leave_claim(tmp_path)
    assert take_claim(tmp_path, "a") is None
    os.utime(tmp_path / "a~1.claim", (time.time() - claims.LEASE - 60,) * 2)
    assert take_claim(tmp_path, "a") is not None


def test_one_that_was_taken_for_dead_learns_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    slow = take_claim(tmp_path, "a")
    os.utime(tmp_path / "a~1.claim", (time.time() - claims.LEASE - 60,) * 2)
    quick = take_claim(tmp_path, "a")
    assert quick.holds()
    assert not slow.holds()
    slow.release()
    assert quick.holds()
    assert take_claim(tmp_path, "a") is None


def test_a_claim_that_comes_in_the_place_of_a_dead_one_is_seen(tmp_path, monkeypatch):
    """Somebody looks at a dead claim, is slow, and meanwhile it is taken over, released, and taken anew."""
    leave_claim(tmp_path)
    create, others = claims._create, []

    def slowly(path):
        monkeypatch.setattr(claims, "_create", create)
        take_claim(tmp_path, "a").release()
        others.append(take_claim(tmp_path, "a"))
        return create(path)

    monkeypatch.setattr(claims, "_create", slowly)
    assert take_claim(tmp_path, "a") is None
    assert [file.name for file in tmp_path.iterdir()] == ["a~1.claim"]
    assert others[0].holds()


def _contend(folder, number, seconds, locks):
    """Claim again and again; while the claim is held, nobody else may be in the room. Some die in it."""
    if not locks:
        fcntl.flock = no_locks
        claims.LEASE = 0.5
        claims._BEAT = 0.02
    rng = random.Random(number)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        claim = take_claim(folder / "claims", "a")
        if claim is None:
            time.sleep(rng.uniform(0, 0.002))
            continue
        room = folder / f"in-the-room-{time.monotonic_ns()}-{number}"
        room.touch()
        others = [file.name for file in folder.glob("in-the-room-*") if file != room]
        alive = [name for name in others if not (folder / f"dead-{name.rpartition('-')[2]}").exists()]
        if alive:
            (folder / f"met-{number}").write_text(str(alive))
        time.sleep(rng.uniform(0, 0.003))
        if rng.random() < 0.1:
            (folder / f"dead-{number}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        room.unlink()
        with (folder / f"count-{number}").open("a") as file:
            file.write("x")
        claim.release()


@pytest.mark.parametrize("locks", [True, False])
def test_many_who_want_the_same_never_meet(tmp_path, locks):
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=_contend, args=(tmp_path, n, 3, locks)) for n in range(12)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert list(tmp_path.glob("dead-*"))
    assert not list(tmp_path.glob("met-*"))
    assert sum(len(file.read_text()) for file in tmp_path.glob("count-*")) > 5
