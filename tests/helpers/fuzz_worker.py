"""A program that reads the files it is told to, with a limit of memory, and says what became of each.

A line on standard input holds a kind of file and its path; a line of JSON on standard output answers: "read", "refused"
(with one line, as users see it), or "wrong": another exception, or something was read that the file does not say.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from regnet_itk.comparison.records import StepRecord, as_array
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import check_mask
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import RegNetItkError
from regnet_itk.inspection import describe_inspection, inspect_file
from regnet_itk.metrics.metric import mean_of
from regnet_itk.networks.model import load_model, read_model_header
from regnet_itk.pairs import check_pairs, read_pairs
from regnet_itk.parameters import read_parameter_map
from regnet_itk.radiotherapy.dose import read_dose
from regnet_itk.radiotherapy.shapes import make_shape, stack_planes
from regnet_itk.radiotherapy.structures import read_structures
from regnet_itk.report.finished_run import read_finished_run, write_run_report
from regnet_itk.stages.planning import read_stages
from regnet_itk.training.config import read_training_config
from regnet_itk.transforms.elastix_reading import read_chain

_MEMORY = 2 << 30  # bytes, beyond what the program takes
_LONGEST_LINE = 1200
POINTS = np.random.default_rng(0).uniform(-20, 20, (5, 3))


class Wrong(Exception):
    """Something was read that the file does not say."""


def _image(path: Path) -> None:
    image = read_image(path)
    judge = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(float)
    if image.array.shape != judge.shape:
        raise Wrong(f"shape {image.array.shape}, of SimpleITK {judge.shape}")
    finite = np.isfinite(image.array) & np.isfinite(judge)
    if not np.allclose(image.array[finite].astype(float), judge[finite], rtol=1e-5, atol=1e-5):
        raise Wrong("other values than SimpleITK's")
    describe_inspection(inspect_file(path))


def _mask(path: Path) -> None:
    mask = read_image(path, "mask")
    check_mask(mask, mask, "fixed")
    if not np.array_equal(mask.array, np.rint(mask.array)):
        raise Wrong("a mask of values that are no whole numbers")


def _field(path: Path) -> None:
    field = read_displacement_field(path)
    if not (np.isfinite(field.vectors).all() and np.isfinite(field.map_points(POINTS)).all()):
        raise Wrong("vectors that are not finite")
    describe_inspection(inspect_file(path))


def _landmarks(path: Path) -> None:
    points = read_landmarks(path, Grid((20, 20, 20), (1.0, 2.0, 3.0))).points
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise Wrong(f"points of shape {points.shape}, or not finite")
    describe_inspection(inspect_file(path, Grid((20, 20, 20))))


def _as_elastix_reads(path: Path, ours: dict[str, tuple[str, ...]]) -> None:
    import itk

    read = itk.ParameterObject.New()
    try:
        read.ReadParameterFile(str(path))
    except RuntimeError as error:
        raise Wrong(f"elastix refuses it: {str(error).strip().splitlines()[-1]}") from None
    theirs = {key: tuple(values) for key, values in dict(read.GetParameterMap(0)).items()}
    if theirs != ours:
        other = [key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)]
        raise Wrong(f"'{other[0]}' is {ours.get(other[0])}, and {theirs.get(other[0])} for elastix")


def _parameters(path: Path) -> None:
    values = read_parameter_map(path)
    if path.suffix == ".txt":
        _as_elastix_reads(path, dict(values.values))
    describe_inspection(inspect_file(path))
    read_stages(path)


def _transform(path: Path) -> None:
    chain = read_chain(path)
    if path.suffix == ".txt":
        _as_elastix_reads(path, dict(read_parameter_map(path).values))
    elif path.suffix == ".tfm":
        judge = sitk.ReadTransform(str(path))
        theirs = np.array([judge.TransformPoint(point) for point in POINTS.tolist()])
        if not np.allclose(chain.map_points(POINTS), theirs, rtol=1e-6, atol=1e-3):
            raise Wrong("other points than SimpleITK's")
    if not np.isfinite(chain.map_points(POINTS)).all():
        raise Wrong("points that are not finite")
    describe_inspection(inspect_file(path))


_MODELS: dict[str, Any] = {}


def _dose(path: Path) -> None:
    if not np.isfinite(read_dose(path).image.array).all():
        raise Wrong("a dose that is not finite")
    describe_inspection(inspect_file(path))


def _structures(path: Path) -> None:
    for structure in read_structures(path).structures:
        stack = stack_planes(structure, 3.0)
        if stack is not None and not np.isfinite(make_shape(stack).at(POINTS)).all():
            raise Wrong("a solid that is not finite")
    describe_inspection(inspect_file(path))


def _model(path: Path) -> None:
    """A model whose file is another must not be another model."""
    read_model_header(path)
    model = load_model(path)
    first = _MODELS.setdefault(path.name, model)  # the whole file comes first
    if (model.digest, model.description) != (first.digest, first.description):
        raise Wrong("an altered model is taken")


def _recipe(path: Path) -> None:
    read_training_config(path)


def _run(path: Path) -> None:
    run = read_finished_run(path.parent)
    write_run_report(run, path.parent / "report.html", longest_axis=16)


def _pairs(path: Path) -> None:
    check_pairs(read_pairs(path))


def _record(path: Path) -> None:
    record = StepRecord.read(path)
    if record is None:
        raise RegNetItkError("none")
    as_array(record.measures.differences)
    f"{record.seconds + record.peak_mb:.1f} {mean_of(record.measures.metrics.get('correlation')):.3f}"
    record.write(path)


READERS: dict[str, Callable[[Path], None]] = {
    "image": _image, "mask": _mask, "field": _field, "landmarks": _landmarks, "parameters": _parameters,
    "transform": _transform, "dose": _dose, "structures": _structures, "model": _model,
    "recipe": _recipe, "run": _run, "pairs": _pairs, "record": _record,
}  # fmt: skip


def attempt(kind: str, path: Path) -> tuple[str, str]:
    """Read a file and return what became of it, with a line."""
    try:
        READERS[kind](path)
    except RegNetItkError as error:
        text = str(error)
        return ("refused", text) if 0 < len(text) < _LONGEST_LINE else ("wrong", f"a line of {len(text)} characters")
    except Wrong as error:
        return "wrong", str(error)
    except BaseException:
        return "wrong", traceback.format_exc()
    return "read", ""


def main() -> None:
    """Answer until there is no question left."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what ITK prints
    logging.getLogger("regnet_itk").addHandler(logging.NullHandler())
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, path = json.loads(line)
        print(json.dumps(attempt(kind, Path(path))), file=answers, flush=True)


if __name__ == "__main__":
    main()
