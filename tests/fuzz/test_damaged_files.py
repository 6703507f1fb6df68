"""Thousands of damaged files for every reader: each is read as other programs read it, or refused in one line.

Files are read in a process of its own, so that a crash, a hang and memory without end are findings as well. What is
done to them depends on a seed alone. ``REGNET_ITK_FUZZ`` multiplies how many there are, ``REGNET_ITK_FUZZ_SEED`` says
where to begin, and ``REGNET_ITK_FUZZ_KEEP`` names a folder for the files of findings.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dicom_cases
import fuzz_worker
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_cases import write_series
from mutations import mutate
from transform_cases import CHAINS, SETTINGS, affine, bspline, plain

from regnet_itk.comparison.records import Measures, StepRecord
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.dicom.series import read_series
from regnet_itk.networks.model import shipped_models
from regnet_itk.parameters import ParameterMap, read_parameter_map, shipped_parameter_files, write_parameter_map
from regnet_itk.registration import register
from regnet_itk.stages.base import Stage, StageResult
from regnet_itk.training.config import shipped_recipes
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.dicom_registration import write_registration
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's"),
]

TIMES = float(os.environ.get("REGNET_ITK_FUZZ", "1"))
FIRST = int(os.environ.get("REGNET_ITK_FUZZ_SEED", "0"))
PATIENCE = 120  # seconds: on a busy machine too, a file that takes so long hangs
GRID = Grid((7, 6, 5), (1.5, 2.0, 3.0), (-4.0, 1.0, 13.0))


class Reader:
    """The process that reads; begun anew when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, path: Path) -> tuple[str, str]:
        """Return what became of a file."""
        process = self._process or self._start()
        try:
            process.stdin.write(json.dumps([kind, str(path)]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._line(PATIENCE)
        if answer is None:
            self.close()
            return "wrong", f"no answer within {PATIENCE} s"
        if not answer:
            status = process.wait()
            self.close()
            return "wrong", f"the process ended with the status {status}"
        return tuple(json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, fuzz_worker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._line(600) == "ready\n"
        return self._process

    def _line(self, seconds: float) -> str | None:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass(frozen=True)
class Known(Stage):
    """A stage that knows its result."""

    link: object = None

    def run(self, pair, initial, options):
        return StageResult(initial.then(self.link), 0.0, pair.fixed)


def write_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write small whole files of every kind, and return them by kind."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 500, GRID.shape)
    found: dict[str, list[Path]] = {}

    def add(kind: str, name: str) -> Path:
        path = folder / kind / name
        path.parent.mkdir(exist_ok=True, parents=True)
        found.setdefault(kind, []).append(path)
        return path

    images = {"a.mha": np.int16, "b.mha": np.float32, "c.nii": np.int16, "d.nii": np.float32, "e.nii.gz": np.uint8,
              "f.nrrd": np.int16, "g.nrrd": np.float64, "h.mhd": np.int16}  # fmt: skip
    for name, dtype in images.items():
        path = add("image", name)
        sitk.WriteImage(Image(hu.astype(dtype), GRID).to_sitk(), str(path), useCompression=name[0] in "af")
    for name in ("m.mha", "m.nii.gz"):
        write_image(Image((hu > 0).astype(np.uint8), GRID), add("mask", name))
    field_ = DisplacementField(rng.normal(size=(*GRID.shape, 3)).astype(np.float32), GRID)
    for name in ("u.mha", "u.nii", "u.nrrd"):
        field_.write(add("field", name))
    points = Landmarks(rng.uniform(0, 15, (6, 3)), tuple("abcdef"))
    for name in ("p.txt", "p.vtk", "p.csv", "p.fcsv", "p.mrk.json"):
        write_landmarks(points, add("landmarks", name))
    add("landmarks", "i.txt").write_text("index\n2\n1 2 3\n4 5 6\n")
    for name in ("affine", "regnet_multistage", "bspline_refine"):
        shutil.copy(shipped_parameter_files()[name], add("parameters", f"{name}.txt"))
    write_parameter_map(read_parameter_map("affine"), add("parameters", "affine.toml"))
    for name, chain in (("affine", CHAINS["affine"]), ("bspline", TransformChain((plain(bspline()),)))):
        shutil.move(write_elastix(chain, folder)[-1], add("transform", f"{name}.txt"))
    for path in write_elastix(TransformChain((plain(affine()), link_field(field_, SETTINGS))), folder / "transform"):
        found["transform"].append(path)
    found["field"].append(folder / "transform" / "deformationField.1.mha")
    for name, transform in (("matrix", affine()), ("field", field_)):
        for suffix in ("tfm", "h5"):
            write_itk(TransformChain((plain(transform),)), add("itk", f"{name}.{suffix}"))
    _write_dicom_seeds(add)
    shutil.copy(shipped_models()["regnet_1scale"], add("model", "m.safetensors"))
    for name in ("regnet_long", "regnet_2017"):
        shutil.copy(shipped_recipes()[name], add("recipe", f"{name}.toml"))
    run = add("run", "registration.json").parent
    for name in ("fixed", "moving"):
        write_image(Image(hu.astype(np.int16), GRID), run / f"{name}.mha")
    stage = Known(ParameterMap({"ResultImageFormat": ("mha",)}), plain(affine()))
    inside = Landmarks(GRID.index_to_point([[1, 1, 1], [3, 3, 3], [4, 2, 1]]))
    for name in ("fixed", "moving"):
        write_landmarks(inside, run / f"{name}.csv")
    register(run / "fixed.mha", run / "moving.mha", [stage], fixed_landmarks=run / "fixed.csv",
             moving_landmarks=run / "moving.csv", both_ways=True).write(run)  # fmt: skip
    found["run"].append(run / "TransformParameters.0.txt")
    pairs = add("pairs", "pairs.csv")
    both = "../run/fixed.mha,../run/moving.mha"
    pairs.write_text(
        "name,group,fixed,moving,fixed_landmarks,moving_landmarks\n"
        f"a,Test,{both},../run/fixed.csv,../run/moving.csv\nb,,{both},,\n"
    )
    record = StepRecord(
        "x", "k", "m", "T.txt", 1.0, 2.0, {"a": 1}, Measures([[1, 2, 3]], [[0, 0, 1]], None, {"correlation": 0.5})
    )
    record.write(add("record", "measures.json"))
    return found


def _write_dicom_seeds(add: Callable[[str, str], Path]) -> None:
    series = []
    for side in ("fixed", "moving"):
        write_series(dicom_cases.empty_image(GRID), series_folder := add("series", side), side)
        series.append(read_series(series_folder, side))
    for name, chain in (("matrix", CHAINS["affine"]), ("field", CHAINS["affine, field"])):
        write_registration(chain, add("registration", f"{name}.dcm"), *series)
    dicom_cases.write_dose(Image(np.linspace(0, 60, GRID.points()[..., 0].size).reshape(GRID.shape), GRID),
                           add("dose", "dose.dcm"))  # fmt: skip
    square = np.array([[0, 0, 0], [9, 0, 0], [9, 7, 0], [0, 7, 0.0]])
    contours = [("CLOSED_PLANAR", square + np.array([0, 0, z])) for z in (1.0, 4.0, 7.0)]
    dicom_cases.write_structures([("box", [1, 2, 3], contours)], add("structures", "structures.dcm"), GRID)


MUTATIONS = {"image": 300, "mask": 60, "field": 120, "landmarks": 250, "parameters": 200, "transform": 150, "itk": 12,
             "registration": 150, "dose": 100, "structures": 150, "model": 80, "recipe": 100, "run": 40,
             "pairs": 100, "record": 60}  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_files_are_read_rightly_or_refused_in_one_line(kind, seeds, reader, capsys):
    how = "transform" if kind in ("itk", "registration") else kind
    whole = {path: path.read_bytes() for path in seeds[kind]}
    for path in whole:
        assert reader.ask(how, path) == ("read", ""), path
    outcomes, findings = Counter(), []
    for seed in range(FIRST, FIRST + int(MUTATIONS[kind] * TIMES)):
        path = seeds[kind][seed % len(whole)]
        damaged = mutate(whole[path], path.name, random.Random(f"{kind} {seed}"))
        path.write_bytes(damaged)
        outcome, line = reader.ask(how, path)
        outcomes[outcome] += 1
        if outcome == "wrong":
            findings.append(f"seed {seed}, {path.name}: {line}")
            if kept := os.environ.get("REGNET_ITK_FUZZ_KEEP"):
                Path(kept, f"{kind}-{seed}-{path.name}").write_bytes(damaged)
        path.write_bytes(whole[path])
    with capsys.disabled():
        print(f"\n{kind}: {sum(outcomes.values())} damaged files, {dict(outcomes)}")
    assert not findings, "\n".join(findings)
