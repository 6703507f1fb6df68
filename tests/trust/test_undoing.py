"""B-splines that follow the noise are undone, and others are not: on turned grids, judged by SimpleITK."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation
from shifted_pairs import shift

from regnet_itk import (
    ImagePair,
    Landmarks,
    TransformChain,
    read_parameter_map,
    register,
    write_image,
    write_landmarks,
)  # fmt: skip
from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.step import StepSettings
from regnet_itk.comparison.tables import collect_error_rows
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.pairs import Pair
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.transforms.chain import Link
from regnet_itk.transforms.matrix import MatrixTransform

POINTS = np.random.default_rng(3).uniform(-40, 40, (60, 3))


def turned_grid(size, spacing, *degrees):
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    first = -turn @ (np.array(spacing) * (np.array(size) - 1) / 2)
    return Grid(size, spacing, tuple(first), tuple(map(tuple, turn)))


@pytest.fixture(scope="module")
def pair():
    """The same texture on two turned anisotropic grids, with noise: T is the identity."""
    rng = np.random.default_rng(0)
    space = Grid((100, 100, 100), (2.0, 2.0, 2.0), (-99.0, -99.0, -99.0))
    texture = sum(ndimage.gaussian_filter(rng.normal(size=space.shape), s) * s**1.5 for s in (2.5, 4.0, 7.0))
    source = Image((-500 + 150 * texture / texture.std()).astype(np.float32), space)
    grids = turned_grid((26, 24, 22), (4.6, 5.0, 5.4), -10, 5, 20), turned_grid((28, 28, 24), (5.0, 4.8, 5.5), 8, -6, 5)
    images = (source.resampled(grid, order=3, default=-1000.0) for grid in grids)
    noisy = (Image((i.array + rng.normal(size=i.array.shape) * 60).astype(np.float32), i.grid) for i in images)
    return ImagePair(*noisy)


def refined(pair, start, **keys):
    stage = read_parameter_map("bspline_refine").with_(ResultImagePixelType="float", **keys)
    return register(pair.fixed, pair.moving, [stage], initial=TransformChain((Link(start),)), threads=1)


def error_in_files(result, folder):
    result.write(folder)
    whole = sitk.ReadTransform(str(folder / "TransformParameters.0-Composite.h5"))
    return np.linalg.norm([np.subtract(whole.TransformPoint(p), p) for p in POINTS.tolist()], axis=1).mean()


def test_what_leads_farther_from_the_truth_is_undone(pair, tmp_path, caplog):
    start = MatrixTransform(np.eye(3), translation=np.array([0.3, -0.2, 0.2]))
    with caplog.at_level(logging.WARNING, "regnet_itk"):
        result = refined(pair, start)
    details = result.stages[0].details
    assert details["undone"] is True
    assert details["expected_error_after"] > details["expected_error_before"]
    assert "expected to lie farther from the truth" in str(details["warnings"])
    assert "its start" in caplog.text
    assert error_in_files(result, tmp_path / "undone") == pytest.approx(np.linalg.norm([0.3, 0.2, 0.2]), abs=1e-4)
    by_sitk = sitk.Resample(
        pair.moving.to_sitk(), pair.fixed.to_sitk(), sitk.TranslationTransform(3, (0.3, -0.2, 0.2)), sitk.sitkBSpline,
        -1000.0, sitk.sitkFloat32,
    )  # fmt: skip
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(result.warped.array[inner], sitk.GetArrayFromImage(by_sitk)[inner], atol=1.0)
    kept = refined(pair, start, RegNetUndo="false")
    assert error_in_files(kept, tmp_path / "kept") > 0.8


def test_a_comparison_undoes_it_too(pair, tmp_path, caplog):
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        write_image(image, tmp_path / f"{name}.mha")
    write_landmarks(Landmarks(POINTS), tmp_path / "points.csv")
    files = {
        "fixed": "fixed.mha",
        "moving": "moving.mha",
        "fixed_landmarks": "points.csv",
        "moving_landmarks": "points.csv",
    }
    known = Pair("p", **{name: tmp_path / file for name, file in files.items()})
    near = shift(tmp_path / "log", 0.3, -0.2, 0.2)
    methods = [
        Method(undo, (near, ElastixStage(read_parameter_map("bspline_refine").with_(RegNetUndo=undo))), ("near", undo))
        for undo in ("true", "false")
    ]
    found = compare([known], methods, tmp_path / "out", StepSettings(threads=1))
    means = {row.method: row.means[0] for row in collect_error_rows(found) if (row.measure, row.data) == ("TRE", "all")}
    assert means["true"] == pytest.approx(np.linalg.norm([0.3, 0.2, 0.2]), abs=1e-4)
    assert means["false"] > 0.8


def test_what_leads_to_the_truth_is_kept(pair, tmp_path):
    start = MatrixTransform(np.eye(3), translation=np.array([6.0, -5.0, 4.0]))
    result = refined(pair, start)
    assert "undone" not in result.stages[0].details
    assert error_in_files(result, tmp_path / "kept") < 4.0
