"""Small chains of every kind on a turned grid, and points in it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.matrix import MatrixTransform

TURNED = ((0.0, -1.0, 0.0), (0.6, 0.0, -0.8), (0.8, 0.0, 0.6))
GRID = Grid((16, 14, 12), (3.0, 4.0, 5.0), (-20.0, 30.0, 10.0), TURNED)
AFFINE = MatrixTransform([[1.1, 0.1, 0], [-0.05, 0.95, 0.1], [0, 0.02, 1.05]], GRID.centre(), [3, -4, 5])
POINTS = GRID.index_to_point(np.random.default_rng(0).uniform(0, 1, (200, 3)) * (np.asarray(GRID.size) - 1))


def field(seed=0, grid=GRID):
    vectors = gaussian_filter(np.random.default_rng(seed).normal(size=(*grid.shape, 3)), (3, 3, 3, 0))
    return DisplacementField((vectors * 5 / np.abs(vectors).max()).astype(np.float32), grid)


def bspline(order=3):
    grid = Grid((11, 11, 11), (10.0, 10.0, 10.0), tuple(GRID.index_to_point([-6, -5, -5])), TURNED)
    return BSplineTransform(np.random.default_rng(1).normal(size=(*grid.shape, 3)) * 2, grid, order)


def chain_of(*links):
    return TransformChain(tuple(link if isinstance(link, Link) else Link(link) for link in links))


U, W = link_field(field()), link_field(field(1))
CHAINS = {
    "identity": chain_of(),
    "affine": chain_of(AFFINE),
    "affine, field": chain_of(AFFINE, U),
    "affine, field, bspline": chain_of(AFFINE, U, bspline()),
    "affine, field, field": chain_of(AFFINE, U, W),
    "bspline, field": chain_of(bspline(), U),
    "field": chain_of(U),
    "affine, added bspline": chain_of(AFFINE, Link(bspline(), "add")),
    "affine, added affine": chain_of(AFFINE, Link(AFFINE, "add")),
    "affine, innermost affine": chain_of(AFFINE, Link(AFFINE, "innermost")),
    "bspline, innermost affine": chain_of(bspline(), Link(AFFINE, "innermost")),
    "affine, innermost bspline": chain_of(AFFINE, Link(bspline(), "innermost")),
}
