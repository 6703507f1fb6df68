"""Chains of transforms: what they map, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from chain_cases import AFFINE, CHAINS, GRID, POINTS, chain_of, field

from regnet_itk.data.grid import Grid
from regnet_itk.errors import TransformError
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform


def test_the_three_ways_to_combine_are_what_they_say():
    p, c = AFFINE.map_points, field().map_points
    maps = {combine: chain_of(AFFINE, Link(field(), combine)) for combine in ("compose", "add", "innermost")}
    np.testing.assert_allclose(maps["compose"].map_points(POINTS), c(p(POINTS)))
    np.testing.assert_allclose(maps["add"].map_points(POINTS), p(POINTS) + c(POINTS) - POINTS)
    np.testing.assert_allclose(maps["innermost"].map_points(POINTS), p(c(POINTS)))
    assert np.abs(maps["compose"].map_points(POINTS) - maps["innermost"].map_points(POINTS)).max() > 1


def test_the_identity_maps_points_to_themselves_and_does_not_share_them():
    mapped = TransformChain().map_points(POINTS)
    np.testing.assert_array_equal(mapped, POINTS)
    assert mapped is not POINTS
    assert TransformChain().map_points([1.0, 2.0, 3.0]).tolist() == [1, 2, 3]


def test_the_displacement_on_a_grid_is_that_of_the_points():
    chain = CHAINS["affine, field"]
    for grid in (GRID, GRID.with_spacing((0.5, 0.7, 0.9))):  # few points and many
        points = grid.points()[::3, ::5, ::7]
        found = chain.displacement_on(grid)
        assert found.vectors.dtype == np.float32
        np.testing.assert_allclose(found.vectors[::3, ::5, ::7], chain.map_points(points) - points, atol=1e-5)


def test_transforms_refuse_what_does_not_fit():
    with pytest.raises(TransformError, match="needs shape"):
        MatrixTransform(np.eye(2))
    with pytest.raises(TransformError, match="needs its parameters"):
        MatrixTransform(np.eye(3), name="EulerTransform")
    with pytest.raises(TransformError, match="do not fit"):
        BSplineTransform(np.zeros((5, 5, 5, 2)), Grid((5, 5, 5)))
    with pytest.raises(TransformError, match="more control points"):
        BSplineTransform(np.zeros((3, 3, 3, 3)), Grid((3, 3, 3)))
