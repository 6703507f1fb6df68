"""A registration in a process of its own, which can be stopped, and the folder that it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from regnet_itk.child_processes import Child, Done, Failed
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.elastix_results import ElastixResult, why_whole
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.events import Events, Progress
from regnet_itk.output_files import check_inputs_stay
from regnet_itk.outputs import check_writable, staged_folder
from regnet_itk.registration import register
from regnet_itk.registration_events import WholeProgress
from regnet_itk.registration_inputs import Images
from regnet_itk.report.finished_run import check_finished
from regnet_itk.result_files import RECORD, RUN_FILES
from regnet_itk.run_log import RunLog, heard_by
from regnet_itk.stages.choice import CHEST_CT_STAGES
from regnet_itk.stages.planning import read_stages
from regnet_itk.transforms.elastix_keys import check_nameable
from regnet_itk.transforms.elastix_writing import rename_elastix_files

_POLL_SECONDS = 0.1
_WRITING = "writing"
_LAYER = "layer."  # what the names of files begin with that hold what a layer held
_LAYER_FILES = f"{_LAYER}*"


class Stopped(Exception):
    """Somebody has stopped the registration."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is registered: each a file, or what a layer holds that no file has.

    Parameters
    ----------
    fixed, moving : Path or Image
    fixed_mask, moving_mask : Path or Image, optional
    fixed_landmarks, moving_landmarks : Path or Landmarks, optional
        Both, or none.
    """

    fixed: Path | Image
    moving: Path | Image
    fixed_mask: Path | Image | None = None
    moving_mask: Path | Image | None = None
    fixed_landmarks: Path | Landmarks | None = None
    moving_landmarks: Path | Landmarks | None = None

    def items(self) -> dict[str, Path | Image | Landmarks]:
        """Return what there is, by what it is."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def files(self) -> list[Path]:
        """Return the files among them."""
        return [value for value in self.items().values() if isinstance(value, Path)]

    def to_be_written(self) -> dict[str, str]:
        """Return the names of the files, in the run's folder, of what no file has; by what it is."""
        return {
            name: f"{_LAYER}{name}.{'csv' if isinstance(value, Landmarks) else 'mha'}"
            for name, value in self.items().items()
            if not isinstance(value, Path)
        }


@dataclass(frozen=True, eq=False)
class RunTask:
    """A registration.

    Parameters
    ----------
    inputs : Inputs
    stages : tuple of str, optional
        Names or files of stages; by default the program chooses them.
    out : Path
        Where it is written.
    """

    inputs: Inputs
    stages: tuple[str, ...] | None
    out: Path

    def check(self) -> None:
        """Refuse, before the work, what cannot be written.

        Raises
        ------
        OutputError
        """
        check_nameable(self.out)
        read: list[str | Path] = [*self.inputs.files(), *(self.stages or ())]
        RUN_FILES.check(self.out, read)
        written = self.inputs.to_be_written().values()
        check_inputs_stay(self.out, read, lambda name: name in written)
        check_writable(self.out)


def run_apart(task: RunTask, tell: Callable[[Progress], None], is_stopped: Callable[[], bool]) -> list[str]:
    """Register in a process of its own.

    Whatever ends it early, the process ends, elastix's with it, and nothing is left in the folder. Once it is being
    written, nobody stops it any more.

    Parameters
    ----------
    task : RunTask
    tell : callable
        Hears how far it is.
    is_stopped : callable
        Is asked ten times a second.

    Returns
    -------
    list of str
        The warnings.

    Raises
    ------
    RegistrationError
        If it failed: the one line that says why.
    Stopped
    """
    # A script that shows a napari viewer seldom asks for its own name: it is not to run again in the child
    with Child(register_and_write, with_main=False) as child:
        child.give(task)
        is_written = False
        while True:
            if is_stopped() and not is_written:
                raise Stopped
            if not child.connection.poll(_POLL_SECONDS):
                continue
            said = child.receive()
            if isinstance(said, Failed):
                raise RegistrationError(said.reason)
            if isinstance(said, Done):
                warnings: list[str] = said.result
                return warnings
            is_written = is_written or said.text == _WRITING
            tell(said)


class _Warnings:
    """Keeps what a screen would show of warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Leave what was reached to the log."""

    def warn(self, line: str) -> None:
        """Keep a warning."""
        self.lines.append(line)


def register_and_write(task: RunTask, events: Events) -> list[str]:
    """Register, write what ``regnet-itk run`` writes, and return the warnings."""
    inputs = task.inputs
    shown = _Warnings()
    log = RunLog(shown)
    with heard_by(log):
        stages = None if task.stages is None else read_stages(task.stages, events.log)
        if stages is not None and why_whole(stages, Images.read(inputs.fixed, inputs.moving), None) is not None:
            raise ParameterError(
                "elastix computes this chain as a whole, of which nothing can be shown here: use `regnet-itk run`"
            )
        result = register(
            inputs.fixed, inputs.moving, stages, fixed_mask=inputs.fixed_mask, moving_mask=inputs.moving_mask,
            fixed_landmarks=inputs.fixed_landmarks, moving_landmarks=inputs.moving_landmarks,
            events=WholeProgress(events, len(stages or CHEST_CT_STAGES)),
        )  # fmt: skip
        assert not isinstance(result, ElastixResult)
        log.note(f"registered in {log.seconds():.1f} s")
        names = inputs.to_be_written()
        new_files = {name: str(task.out.resolve() / file) for name, file in names.items()}
        result = replace(result, inputs={**result.inputs, **new_files})
        events.progress(Progress(1.0, "how far to trust it"))
        _ = result.verdict  # which takes a while; writing cannot be stopped any more
        events.progress(Progress(1.0, _WRITING))
        with staged_folder(task.out) as stage:  # all appear, or none
            for name, file in names.items():
                _write(inputs.items()[name], stage / file)
            result.write(task.out, log.lines)
    return shown.lines


def _write(given: Path | Image | Landmarks, path: Path) -> None:
    if isinstance(given, Landmarks):
        write_landmarks(given, path)
    elif isinstance(given, Image):
        write_image(given, path)


def copy_run(folder: Path, out: Path) -> None:
    """Copy the folder of a finished run, whole or not at all; its files name each other in the new one.

    Parameters
    ----------
    folder : Path
        Other files in it are left where they are.
    out : Path
        Created if needed; an earlier run's files are removed.

    Raises
    ------
    RegistrationError
        If there is no finished run.
    OutputError
        If it cannot be written, or holds files of another program, or of the inputs.
    """
    folder, out = folder.resolve(), out.resolve()
    check_finished(folder)
    check_nameable(out)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    inputs = record.get("inputs", {})
    RUN_FILES.check(out, inputs.values())
    record["inputs"] = {
        name: str(out / Path(file).name) if Path(file).parent == folder else file for name, file in inputs.items()
    }
    with staged_folder(out, RUN_FILES) as stage:
        names = [file.name for file in (*RUN_FILES.find_earlier(folder), *folder.glob(_LAYER_FILES))]
        for name in names:
            shutil.copyfile(folder / name, stage / name)
        elastix_files = {name: name for name in names if name.endswith((".txt", ".mha"))}
        rename_elastix_files(stage, elastix_files, out, written_for=folder)
        (stage / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
