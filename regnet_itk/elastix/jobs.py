"""A job of elastix's library, in a process of its own.

elastix keeps state from one run to the next, cannot be stopped from Python, and takes its caller down when it
crashes. In a fresh process none of that matters: runs are equal to the bit, and stop at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.image import Image
from regnet_itk.data.image_nd import ImageND
from regnet_itk.elastix.components import COMPONENTS
from regnet_itk.errors import ParameterError, RegistrationError, did_you_mean
from regnet_itk.held_folders import HeldFolder

_POLL_SECONDS = 0.2
_WORKER = Path(__file__).with_name("worker.py")
_REASON = re.compile(r"Description: ITK ERROR: (?:\w+\(\w+\): )?(.*)", re.DOTALL)
_TOLD_LINES = 400
_ADVICE = {
    "too many samples map outside": "the images or masks do not overlap: check where they lie, set "
    '(AutomaticTransformInitialization "true") in the first stage, or give an initial transform',
    "no valid voxels": "no sample lies in both images and masks: check that the masks are not empty and that the "
    "images overlap",
    "not implemented for deformationfield": "one of its metrics cannot start from a displacement field: use an "
    "intensity metric, or put the stage before RegNet",
    "casting entry number": "correct the value in the parameter file",
    "could not find enough image samples": "the mask is too small: enlarge it, or use fewer samples",
    "failed to allocate": "the images do not fit into memory: use smaller ones",
    "pointset is not specified": "give `fixed_landmarks` and `moving_landmarks`",
    "-fp should be given": "give `fixed_landmarks` and `moving_landmarks`",
}
_ADVICE["bad_alloc"] = _ADVICE["failed to allocate"]


@contextmanager
def job_folder() -> Iterator[Path]:
    """Give a temporary folder for a job, with an empty folder ``output`` in it.

    Raises
    ------
    RegistrationError
        If there is no room for it, or for what is written into it.
    """
    try:
        folder = HeldFolder(tempfile.gettempdir(), "regnet-itk-job-")
    except OSError as error:
        raise _no_room(Path(error.filename or "").parent, error) from None
    with folder:
        (folder.path / "output").mkdir()
        yield folder.path


def _no_room(folder: Path, error: OSError | None = None) -> RegistrationError:
    reason = f" ({error.strerror})" if error is not None and error.strerror else ""
    return RegistrationError(
        f"the temporary folder '{folder}' is full or not writable{reason}; free some space or set TMPDIR"
    )


@contextmanager
def writing_to(job: Path) -> Iterator[None]:
    """Tell a full disk in one line while a job is written.

    Raises
    ------
    RegistrationError
        In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise _no_room(job.parent, error) from None


def write_images(images: Iterable[Image | ImageND], path: Path) -> list[str]:
    """Write images as elastix reads them, float32, to ``path`` with a number and .mha; return the files."""
    return [_write(replace(image, array=image.array.astype(np.float32)), path, i) for i, image in enumerate(images)]


def write_masks(masks: Iterable[Image | ImageND], path: Path) -> list[str]:
    """Write masks, in which all but 0 counts, as `write_images` does."""
    return [_write(replace(mask, array=(mask.array != 0).astype(np.uint8)), path, i) for i, mask in enumerate(masks)]


def _write(image: Image | ImageND, path: Path, number: int) -> str:
    import SimpleITK as sitk

    file = path.with_name(f"{path.name}{number}.mha")
    try:
        sitk.WriteImage(image.to_sitk(), str(file), useCompression=False)
    except RuntimeError:
        raise _no_room(path.parent.parent) from None
    return str(file)


@dataclass
class Follower:
    """Follows a log while it grows.

    Parameters
    ----------
    path : Path
        The log.
    take : callable
        Is given each line.
    looked : callable
        Is called whenever there were new lines.
    """

    path: Path
    take: Callable[[str], None]
    looked: Callable[[], None] = lambda: None
    last: list[str] = field(default_factory=list)
    _position: int = 0
    _rest: str = ""

    def follow(self) -> None:
        """Pass on what is new."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new.decode("utf-8", "replace")).split("\n")
        for line in lines:
            self.take(line.rstrip("\r"))
        self.last = [*self.last, *lines][-_TOLD_LINES:]
        if new:
            self.looked()


def run_job(
    job: Path,
    settings: Mapping[str, Any],
    follower: Follower,
    source: str,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Run a job to its end; its process does not outlive this function.

    Parameters
    ----------
    job : Path
        A folder of :func:`job_folder`.
    settings : mapping
        What ``worker.py`` reads: its task, the dimension, the files, the priority, the threads.
    follower : Follower
        Of the log that elastix writes.
    source : str
        The parameter or transform file, for the messages.
    meanwhile : callable, optional
        Is called once while the job runs; an error in it ends the job.

    Raises
    ------
    ParameterError
        If elastix misses a component.
    RegistrationError
        If it fails otherwise: one line with its reason.
    """
    with writing_to(job):
        content = json.dumps({"parent": os.getpid(), "output": str(job / "output"), **settings})
        (job / "job.json").write_text(content, encoding="utf-8")
    command = [sys.executable, "-P", str(_WORKER), str(job)]
    with (job / "stderr.txt").open("wb") as stderr:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            if meanwhile is not None:
                meanwhile()
            while child.poll() is None:
                follower.follow()
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
    follower.follow()
    if child.returncode != 0:
        raise _failure(child.returncode, job, follower.last, source)


def _failure(status: int, job: Path, told: Sequence[str], source: str) -> ParameterError | RegistrationError:
    """Return the error for a child process that failed: one line, with what to do where that is known."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        why = "; probably memory ran out: use smaller images" if name == "SIGKILL" else ""
        return RegistrationError(f"{source}: elastix was ended by the signal {name}{why}")
    reason = _reason_in_log(told) or _reason_in_error(job)
    if match := re.search(r"could not be created: (\S+)", reason):
        near = did_you_mean(match[1], COMPONENTS) or "; see elastix's manual for the names it knows"
        return ParameterError(f"{source}: elastix has no component '{match[1]}'{near}")
    if match := re.search(r"component has not been specified: (\S+)", reason):
        return ParameterError(f"{source}: the key '{match[1]}' is missing; say which {match[1]} elastix shall use")
    advice = next((text for sign, text in _ADVICE.items() if sign in reason.lower()), "")
    return RegistrationError(f"{source}: elastix failed: {reason}{'; ' if advice else ''}{advice}")


def _reason_in_log(lines: Iterable[str]) -> str:
    """Return the reason that elastix's log gives, on one line, or an empty string."""
    text = "\n".join(lines)
    if found := re.search(r"Description: .*?(?=\n\s*\n|$(?!\n))", text, re.DOTALL):
        match = _REASON.match(found[0])
        return _one_line(match[1] if match else found[0].removeprefix("Description: "))
    errors = re.findall(r"^ERROR: (.*)$", text, re.MULTILINE)
    return _one_line(errors[0]) if errors else ""


def _reason_in_error(job: Path) -> str:
    """Return the reason that the child process left, or the last line that it printed."""
    for name in ("error.txt", "stderr.txt"):
        file = job / name
        text = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
        if text:
            return _one_line(text if name == "error.txt" else text.splitlines()[-1])
    return "no reason was given"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().removeprefix("ERROR: ").rstrip(".")
