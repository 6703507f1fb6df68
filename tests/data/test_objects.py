"""Objects that hold arrays: each equals itself only, can be a key, and prints as one short line without its values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.parameters import ParameterMap
from regnet_itk.report.viewer import ViewerPair, Volume
from regnet_itk.results import RegistrationResult
from regnet_itk.stage_report import StageReport
from regnet_itk.stages.base import ImagePair, StageResult
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

GRID = Grid((30, 20, 10), (0.75, 0.75, 2.5), (10.0, -5.0, 7.0))
IMAGE = Image(np.linspace(-1000, 400, 6000).astype(np.int16).reshape(GRID.shape), GRID)
CHAIN = TransformChain(
    (
        Link(
            MatrixTransform(np.eye(3), translation=np.array([1.0, 2.0, 3.0])), parameters=ParameterMap({"Size": ("4",)})
        ),
        Link(BSplineTransform(np.zeros((5, 5, 5, 3)), Grid((5, 5, 5), (9.0, 9.0, 9.0)), 3)),
    )
)
FIELD = DisplacementField(np.broadcast_to(np.array([3.0, 4.0, 0.0], np.float32), (*GRID.shape, 3)), GRID)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (IMAGE, "Image(30 x 20 x 10 voxels of 0.75 x 0.75 x 2.5 mm, int16, -1000 to 400)"),
        (Image(np.zeros(GRID.shape, bool), GRID), "Image(30 x 20 x 10 voxels of 0.75 x 0.75 x 2.5 mm, bool, 0 to 0)"),
        (FIELD, "DisplacementField(30 x 20 x 10 voxels of 0.75 x 0.75 x 2.5 mm, float32, |u| up to 5 mm)"),
        (Landmarks([[1, 2, 3], [-4, 5.25, 6]]), "Landmarks(2 points, x -4.0 to 1.0, y 2.0 to 5.2, z 3.0 to 6.0 mm)"),
        (Landmarks(np.zeros((0, 3))), "Landmarks(0 points)"),
    ],
)
def test_one_short_line(thing, expected):
    assert repr(thing) == expected


def test_a_result_names_its_stages():
    stage = StageReport("AffineTransform", ParameterMap({}), 1.25, 1, None)
    found = RegistrationResult(ImagePair(IMAGE, IMAGE), CHAIN, (stage,))
    size = "30 x 20 x 10 voxels of 0.75 x 0.75 x 2.5 mm"
    assert repr(found) == f"RegistrationResult({size}, StageReport(AffineTransform, 1.2 s))"


def test_values_that_are_not_finite_can_be_printed():
    strange = IMAGE.array.astype(float)
    strange[0] = np.nan
    assert repr(Image(strange, GRID)).endswith("float64, nan to nan)")
    assert "|u| up to nan" in repr(DisplacementField(np.full((*GRID.shape, 3), np.nan), GRID))


@pytest.mark.parametrize(
    "thing",
    [
        IMAGE,
        FIELD,
        Landmarks([[1, 2, 3]]),
        ImagePair(IMAGE, IMAGE, IMAGE),
        StageResult(TransformChain(), 1.0, IMAGE),
        ViewerPair("a", IMAGE, IMAGE),
        StageReport("affine", ParameterMap({"Metric": ("A",)}), 1.25, 1, IMAGE),
        RegistrationResult(ImagePair(IMAGE, IMAGE), CHAIN, (), landmarks=np.zeros((9, 3))),
        CHAIN,
        *(link.transform for link in CHAIN.links),
        Volume("fixed", np.zeros(GRID.shape, np.uint8), 0.0, 1.0),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_each_equals_itself_only_and_can_be_a_key(thing):
    other = dataclasses.replace(thing)
    assert thing == thing
    assert thing != other
    assert {thing: 1, other: 2}[thing] == 1
    assert len(repr(thing)) < 600
    assert "array(" not in repr(thing)
    assert "\n" not in repr(thing)
