"""The child process of an elastix stage: runs one registration that is described by a job folder.

It is run as a script and imports nothing of this package. Only the few modules of ITK that elastix needs are loaded,
by their own names, which takes under a second; ``itk.ElastixRegistrationMethod`` loads ten times as many.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

FAILED = 3
_NICE = {"high": -10, "abovenormal": -5, "normal": 0, "belownormal": 10, "idle": 19}
_DIE_WITH_PARENT = 1


def _follow_parent(parent: int) -> None:
    """End with the caller, however it ends; Ctrl-C is the caller's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(FAILED)


def _set_priority(name: str | None) -> None:
    if name is None or not hasattr(os, "nice"):
        return
    with contextlib.suppress(OSError, KeyError):  # only the administrator may raise the priority
        os.nice(_NICE[name])


class _Modules:
    """The classes of ITK that a run needs, for float images and uint8 masks in three dimensions."""

    format: Any
    image_reader: Any
    mask_reader: Any
    parameter_object: Any
    method: Any

    def __init__(self) -> None:
        try:
            self._load_few()
        except (ImportError, AttributeError):  # another layout of the itk package
            self._load_all()

    def _load_few(self) -> None:
        helpers: Any = importlib.import_module("itk.support.helpers")
        helpers._HAVE_TORCH = False  # else ITK's filters import torch
        reader = importlib.import_module("itk.itkImageFileReaderPython")
        method = importlib.import_module("itk.itkElastixRegistrationMethodPython")
        self.format = importlib.import_module("itk.itkMetaImageIOPython").itkMetaImageIO
        self.image_reader, self.mask_reader = reader.itkImageFileReaderIF3, reader.itkImageFileReaderIUC3
        self.parameter_object = importlib.import_module("itk.elxParameterObjectPython").elastixParameterObject
        self.method = method.itkElastixRegistrationMethodIF3IF3

    def _load_all(self) -> None:
        import itk

        image, mask = itk.Image[itk.F, 3], itk.Image[itk.UC, 3]
        self.format, self.parameter_object = itk.MetaImageIO, itk.ParameterObject
        self.image_reader, self.mask_reader = itk.ImageFileReader[image], itk.ImageFileReader[mask]
        self.method = itk.ElastixRegistrationMethod[image, image]

    def read(self, reader: Any, path: str) -> Any:
        """Read an .mha file."""
        source = reader.New()
        source.SetImageIO(self.format.New())
        source.SetFileName(path)
        source.Update()
        return source.GetOutput()


def run_job(folder: Path) -> None:
    """Run the registration of a job folder; elastix writes its files to the folder's ``output``."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _follow_parent(job["parent"])
    _set_priority(job["priority"])
    modules = _Modules()
    method = modules.method.New()
    method.SetFixedImage(modules.read(modules.image_reader, job["fixed"]))
    method.SetMovingImage(modules.read(modules.image_reader, job["moving"]))
    if job["fixed_mask"]:
        method.SetFixedMask(modules.read(modules.mask_reader, job["fixed_mask"]))
    if job["moving_mask"]:
        method.SetMovingMask(modules.read(modules.mask_reader, job["moving_mask"]))
    parameters = modules.parameter_object.New()
    parameters.AddParameterFile(job["parameters"])
    method.SetParameterObject(parameters)
    if job["initial"]:
        method.SetInitialTransformParameterFileName(job["initial"])
    if job["threads"]:
        method.SetNumberOfThreads(job["threads"])
    method.SetOutputDirectory(job["output"])
    method.SetLogToFile(True)
    method.SetLogToConsole(False)
    method.UpdateLargestPossibleRegion()


def main() -> None:
    """Run the job folder that the first argument names."""
    folder = Path(sys.argv[1])
    try:
        run_job(folder)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        traceback.print_exc()
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
