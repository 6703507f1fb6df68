"""The child process of a job: one registration, or one transform applied, that a job folder describes.

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


REGISTRATION, TRANSFORM = "registration", "transform"


class _Modules:
    """The classes of ITK that a job needs, for float images and uint8 masks of one dimension."""

    format: Any
    image_reader: Any
    mask_reader: Any
    image_writer: Any
    parameter_object: Any
    method: Any

    def __init__(self, task: str, dimension: int) -> None:
        try:
            self._load_few(task, dimension)
        except (ImportError, AttributeError):  # another layout of the itk package
            self._load_all(task, dimension)

    def _load_few(self, task: str, dimension: int) -> None:
        helpers: Any = importlib.import_module("itk.support.helpers")
        helpers._HAVE_TORCH = False  # else ITK's filters import torch
        image = f"IF{dimension}"
        reader = importlib.import_module("itk.itkImageFileReaderPython")
        self.format = importlib.import_module("itk.itkMetaImageIOPython").itkMetaImageIO
        self.image_reader = getattr(reader, f"itkImageFileReader{image}")
        self.mask_reader = getattr(reader, f"itkImageFileReaderIUC{dimension}")
        self.parameter_object = importlib.import_module("itk.elxParameterObjectPython").elastixParameterObject
        if task == REGISTRATION:
            method = importlib.import_module("itk.itkElastixRegistrationMethodPython")
            self.method = getattr(method, f"itkElastixRegistrationMethod{image}{image}")
        else:
            method = importlib.import_module("itk.itkTransformixFilterPython")
            writer = importlib.import_module("itk.itkImageFileWriterPython")
            self.method = getattr(method, f"itkTransformixFilter{image}")
            self.image_writer = getattr(writer, f"itkImageFileWriter{image}")

    def _load_all(self, task: str, dimension: int) -> None:
        import itk

        image, mask = itk.Image[itk.F, dimension], itk.Image[itk.UC, dimension]
        self.format, self.parameter_object = itk.MetaImageIO, itk.ParameterObject
        self.image_reader, self.mask_reader = itk.ImageFileReader[image], itk.ImageFileReader[mask]
        self.image_writer = itk.ImageFileWriter[image]
        registers = task == REGISTRATION
        self.method = itk.ElastixRegistrationMethod[image, image] if registers else itk.TransformixFilter[image]

    def read(self, reader: Any, path: str) -> Any:
        """Read an .mha file."""
        source = reader.New()
        source.SetImageIO(self.format.New())
        source.SetFileName(path)
        source.Update()
        return source.GetOutput()

    def write(self, image: Any, path: str) -> None:
        """Write an .mha file."""
        writer = self.image_writer.New()
        writer.SetImageIO(self.format.New())
        writer.SetFileName(path)
        writer.SetInput(image)
        writer.Update()


def run_registration(job: dict[str, Any], modules: _Modules) -> None:
    """Register; elastix writes its files to the job's output folder."""
    method = modules.method.New()
    for reader, name, add in (
        (modules.image_reader, "fixed", method.AddFixedImage),
        (modules.image_reader, "moving", method.AddMovingImage),
        (modules.mask_reader, "fixed_masks", method.AddFixedMask),
        (modules.mask_reader, "moving_masks", method.AddMovingMask),
    ):
        for path in job[name]:
            add(modules.read(reader, path))
    if job["fixed_points"]:
        method.SetFixedPointSetFileName(job["fixed_points"])
    if job["moving_points"]:
        method.SetMovingPointSetFileName(job["moving_points"])
    parameters = modules.parameter_object.New()
    for path in job["parameters"]:
        parameters.AddParameterFile(path)
    method.SetParameterObject(parameters)
    if job["initial"]:
        method.SetInitialTransformParameterFileName(job["initial"])
    if job["threads"]:
        method.SetNumberOfThreads(job["threads"])
    method.SetOutputDirectory(job["output"])
    method.SetLogToFile(True)
    method.SetLogToConsole(False)
    method.UpdateLargestPossibleRegion()


def run_transform(job: dict[str, Any], modules: _Modules) -> None:
    """Apply a transform; what is asked for lies in the job's output folder afterwards."""
    method = modules.method.New()
    method.SetMovingImage(modules.read(modules.image_reader, job["moving"]))
    method.SetTransformParameterFileName(job["transform"])
    method.SetOutputDirectory(job["output"])
    method.SetLogToFile(True)
    method.SetLogToConsole(False)
    if job["points"]:
        method.SetFixedPointSetFileName(job["points"])
    method.SetComputeDeformationField(job["field"])
    method.SetComputeDeterminantOfSpatialJacobian(job["determinant"])
    method.SetComputeSpatialJacobian(job["matrices"])
    method.UpdateLargestPossibleRegion()
    if job["warped"]:
        modules.write(method.GetOutput(), job["warped"])


def run_job(folder: Path) -> None:
    """Do what a job folder describes."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _follow_parent(job["parent"])
    _set_priority(job["priority"])
    task = job["task"]
    if task == TRANSFORM and job["threads"]:
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(job["threads"])  # before ITK is loaded
    run = run_registration if task == REGISTRATION else run_transform
    run(job, _Modules(task, job["dimension"]))


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
