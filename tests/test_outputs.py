"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from regnet_itk import outputs
from regnet_itk.errors import OutputError
from regnet_itk.outputs import check_writable, staged_folder, write_whole


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_appears_with_all_its_parts(tmp_path):
    def write(part):
        part.write_text("head")
        part.with_suffix(".raw").write_text("body")

    write_whole(tmp_path / "image.mhd", write)
    assert names(tmp_path) == ["image.mhd", "image.raw"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (RuntimeError("sitk::ERROR: no"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("a mistake of ours"), ValueError),
    ],
)
def test_a_failing_writer_leaves_the_old_file(failure, raised, tmp_path):
    (tmp_path / "file.txt").write_text("old")

    def write(part):
        part.write_text("half")
        raise failure

    with pytest.raises(raised):
        write_whole(tmp_path / "file.txt", write)
    assert names(tmp_path) == ["file.txt"]
    assert (tmp_path / "file.txt").read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_named_where_a_library_does_not_name_it(tmp_path, monkeypatch):
    def write(part):
        raise OSError("500000 requested and 38384 written")  # numpy

    with pytest.raises(OutputError, match=r"file.npy': 500000 requested and 38384 written$"):
        write_whole(tmp_path / "file.npy", write)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(OutputError, match=r"file.npy': No space left on device \(500000 requested and"):
        write_whole(tmp_path / "file.npy", write)
    with pytest.raises(OutputError, match=r"': No space left on device \(500000"), staged_folder(tmp_path) as stage:
        write(stage)
    monkeypatch.setattr(outputs.shutil, "disk_usage", full)
    with pytest.raises(OutputError, match=r"file.npy': 500000 requested"):
        write_whole(tmp_path / "file.npy", write)


@pytest.mark.parametrize("write", [lambda part: None, lambda part: part.write_text("")], ids=["nothing", "empty"])
def test_a_writer_that_writes_nothing_has_failed(write, tmp_path):
    with pytest.raises(OutputError, match="nothing was written"):
        write_whole(tmp_path / "file.txt", write)
    assert names(tmp_path) == []


def test_where_a_file_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"cannot write '.*file.txt': No such file"):
        write_whole(tmp_path / "none" / "file.txt", lambda part: part.write_text("x"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="a folder of that name"):
        write_whole(tmp_path / "taken", lambda part: part.write_text("x"))
    monkeypatch.setattr(outputs.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_whole(tmp_path / "file.txt", lambda part: part.write_text("x"))
    assert names(tmp_path) == ["taken"]


def test_a_staged_folder_is_filled_at_the_end(tmp_path):
    out = tmp_path / "a" / "b"
    with staged_folder(out) as stage:
        (stage / "one").write_text("1")
        (stage / "two").write_text("2")
        assert stage.parent == out
        assert not (out / "one").exists()
    assert names(out) == ["one", "two"]


def test_a_staged_folder_adds_to_what_is_there(tmp_path):
    (tmp_path / "one").write_text("old")
    (tmp_path / "kept").write_text("old")
    with staged_folder(tmp_path) as stage:
        (stage / "one").write_text("new")
    assert (tmp_path / "one").read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["kept", "one"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OutputError("cannot write x"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
    ],
)
def test_a_failing_block_leaves_nothing(failure, raised, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    for out in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(raised), staged_folder(out) as stage:
            (stage / "file").write_text("new")
            raise failure
    assert names(tmp_path) == ["there", "there/file"]
    assert (tmp_path / "there" / "file").read_text(encoding="utf-8") == "old"


def test_the_message_names_the_file_that_the_user_asked_for(tmp_path):
    with pytest.raises(OutputError) as caught, staged_folder(tmp_path) as stage:
        write_whole(stage / "file", full)
    assert str(caught.value) == f"cannot write '{tmp_path}/file': No space left on device"


def test_a_folder_in_the_place_of_a_file_is_found_before_any_file_moves(tmp_path):
    (tmp_path / "two").mkdir()
    with pytest.raises(OutputError, match="two': there is a folder of that name"), staged_folder(tmp_path) as stage:
        for name in ("one", "two"):
            (stage / name).write_text("new")
    assert names(tmp_path) == ["two"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"'.*/file' is a file"):
            check_writable(folder)
        with pytest.raises(OutputError, match=r"'.*/file' is a file"), staged_folder(folder):
            pass
    check_writable(tmp_path / "new" / "deep")
    assert names(tmp_path) == ["file"]
    with pytest.raises(OutputError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for function in (check_writable, lambda folder: staged_folder(folder).__enter__()):
            with pytest.raises(OutputError, match="no permission"):
                function(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
