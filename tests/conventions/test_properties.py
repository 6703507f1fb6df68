"""What must hold for every grid, field and chain: files give back what they were given, inverses undo, units are free.

Points keep away from the borders of fields and B-splines, where T jumps and rounding would decide on which side it is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.data.landmarks import Landmarks, read_landmarks, write_landmarks
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.inverse import invert_chain, invert_points, measure_inverse_residual
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.reading import read_transform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

AXES = st.tuples(*[st.integers(5, 9)] * 3)
SPACINGS = st.tuples(*[st.floats(0.5, 5.0)] * 3)
ORIGINS = st.tuples(*[st.floats(-800.0, 800.0)] * 3)
# Hundredths of a degree: ITK's singular value decomposition fails on cosines below the smallest normal number
ANGLES = st.tuples(*[st.integers(-18000, 18000).map(lambda hundredths: hundredths / 100)] * 3)
FLIPS = st.sampled_from([(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
SEEDS = st.integers(0, 2**32 - 1)
ROUNDING = 2e-4  # mm; float32 vectors of 10 mm at points of 800 mm, several in a row


def turned(angles, flip):
    return tuple(map(tuple, Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(flip)))


GRIDS = st.builds(lambda size, spacing, origin, angles, flip: Grid(size, spacing, origin, turned(angles, flip)),
                  AXES, SPACINGS, ORIGINS, ANGLES, FLIPS)  # fmt: skip


def random_affine(grid, rng):
    matrix = np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3))
    return MatrixTransform(matrix, grid.centre(), rng.uniform(-4, 4, 3))


def random_field(grid, rng, share=0.2):
    """Return a smooth field whose vectors reach a share of a voxel, so that it has an inverse."""
    wide = grid.pad((6, 6, 6), (6, 6, 6))
    vectors = gaussian_filter(rng.normal(size=(*wide.shape, 3)), (1.5, 1.5, 1.5, 0))
    return DisplacementField((vectors * share * min(grid.spacing) / np.abs(vectors).max()).astype(np.float32), wide)


def random_bspline(grid, rng):
    control = grid.pad((8, 8, 8), (10, 10, 10)).every(2)
    return BSplineTransform(rng.uniform(-0.3, 0.3, (*control.shape, 3)) * min(grid.spacing), control)


MAKERS = {"affine": random_affine, "field": random_field, "bspline": random_bspline}


@dataclass(frozen=True)
class Case:
    """A chain on a grid, and points inside; made when it is used, so that drawing it is quick."""

    grid: Grid
    seed: int
    parts: tuple[tuple[str, str], ...]

    @cached_property
    def chain(self):
        rng, keys = np.random.default_rng(self.seed), make_resampling_parameters(self.grid)
        links = [Link(MAKERS[kind](self.grid, rng), combine) for kind, combine in self.parts]
        return TransformChain(tuple(replace(link, parameters=link.parameters.with_(keys)) for link in links))

    @cached_property
    def points(self):
        inside = np.random.default_rng(self.seed).uniform(0.5, np.array(self.grid.size) - 1.5, (30, 3))
        return self.grid.index_to_point(inside)

    @cached_property
    def mapped(self):
        return self.chain.map_points(self.points)


def cases(combine):
    part = st.tuples(st.sampled_from(sorted(MAKERS)), combine)
    return st.builds(Case, GRIDS, SEEDS, st.lists(part, min_size=1, max_size=3).map(tuple))


CASES = cases(st.sampled_from(["compose", "add"]))
COMPOSED = cases(st.just("compose"))


def folder():
    return tempfile.TemporaryDirectory()


# Write, then read


@settings(max_examples=25)
@given(CASES)
def test_elastix_files_give_the_transform_back(case):
    with folder() as there:
        read = read_chain(write_elastix(case.chain, there)[-1])
    np.testing.assert_allclose(read.map_points(case.points), case.mapped, atol=ROUNDING)


@settings(max_examples=25)
@given(COMPOSED, st.sampled_from(["h5", "tfm"]))
def test_itk_files_give_the_transform_back_to_simpleitk_too(case, suffix):
    with folder() as there:
        file = Path(there) / f"t.{suffix}"
        write_itk(case.chain, file)
        read, judge = read_chain(file), sitk.ReadTransform(str(file))
    np.testing.assert_allclose(read.map_points(case.points), case.mapped, atol=ROUNDING)
    theirs = [judge.TransformPoint(point) for point in case.points.tolist()]
    np.testing.assert_allclose(theirs, case.mapped, atol=ROUNDING)


@settings(max_examples=20)
@given(GRIDS, SEEDS, st.sampled_from(["mha", "mhd", "nrrd", "nii.gz"]))
def test_a_field_and_its_grid_survive_every_format(grid, seed, suffix):
    u = random_field(grid, np.random.default_rng(seed))
    with folder() as there:
        u.write(Path(there) / f"u.{suffix}")
        read = read_displacement_field(Path(there) / f"u.{suffix}")
    assert read.grid.is_close(u.grid, 1e-3)
    np.testing.assert_allclose(read.vectors, u.vectors, atol=1e-6)


@settings(max_examples=20)
@given(GRIDS, SEEDS, st.sampled_from(["mha", "nrrd", "nii.gz"]), st.sampled_from(["int16", "uint8", "float32"]))
def test_an_image_and_its_grid_survive_every_format(grid, seed, suffix, kind):
    array = np.random.default_rng(seed).integers(0, 200, grid.shape).astype(kind)
    with folder() as there:
        write_image(Image(array, grid), Path(there) / f"i.{suffix}")
        read = read_image(Path(there) / f"i.{suffix}")
    assert read.grid.is_close(grid, 1e-3)
    np.testing.assert_array_equal(read.array, array)


@settings(max_examples=20)
@given(GRIDS, SEEDS, st.sampled_from(["txt", "csv", "vtk", "fcsv", "mrk.json"]))
def test_landmarks_survive_every_format(grid, seed, suffix):
    points = grid.index_to_point(np.random.default_rng(seed).uniform(0, 8, (5, 3)))
    with folder() as there:
        write_landmarks(Landmarks(points), Path(there) / f"p.{suffix}")
        read = read_landmarks(Path(there) / f"p.{suffix}")
    np.testing.assert_allclose(read.points, points, atol=1e-9)


# From one kind of file to another, and back


@settings(max_examples=10)
@given(COMPOSED)
def test_elastix_to_itk_to_elastix(case):
    with folder() as there:
        first, itk, last = (Path(there) / name for name in ("first", "t.h5", "last.txt"))
        first.mkdir()
        assert convert(write_elastix(case.chain, first)[-1], itk).exact
        assert convert(itk, last, like=case.grid).exact
        read = read_chain(last)
    np.testing.assert_allclose(read.map_points(case.points), case.mapped, atol=ROUNDING)


@settings(max_examples=10)
@given(
    GRIDS, SEEDS, st.permutations(["h5", "txt", "nrrd", "nii.gz", "mha", "tfm"]), st.sampled_from([None, "lps", "ras"])
)
def test_a_field_goes_round_through_every_kind_of_file(grid, seed, suffixes, vectors):
    u = random_field(grid, np.random.default_rng(seed))
    with folder() as there:
        before = Path(there) / "start.mha"
        u.write(before)
        for suffix in suffixes:
            after = Path(there) / f"next.{suffix}"
            assert convert(before, after, vectors=vectors).exact
            before = after
        (link,) = read_transform(before, vectors).links
    assert link.transform.grid.is_close(u.grid, 1e-3)
    np.testing.assert_allclose(link.transform.vectors, u.vectors, atol=1e-5)


@settings(max_examples=15)
@given(CASES)
def test_the_error_that_is_said_is_the_error_that_there_is(case):
    with folder() as there:
        done = convert(case.chain, Path(there) / "u.mha")
        read = read_transform(done.files[0])
    index = np.random.default_rng(5).uniform(0, np.array(case.grid.size) - 1, (3000, 3))
    points = case.grid.index_to_point(index)
    length = np.linalg.norm(read.map_points(points) - case.chain.map_points(points), axis=1)
    assert abs(length.mean() - done.deviation.mean) <= 0.1 * done.deviation.mean + 1e-6
    assert length.max() <= 1.25 * done.deviation.max + ROUNDING
    assert not done.exact


# The inverse undoes


@settings(max_examples=15)
@given(COMPOSED)
def test_the_inverse_undoes_within_the_residual_that_it_reports(case):
    inverse = invert_chain(case.chain, case.grid)
    residual = measure_inverse_residual(case.chain, inverse, case.grid)
    index = case.grid.point_to_index(case.points)
    measured = ((index >= 1) & (index <= np.array(case.grid.size) - 2)).all(axis=1)  # as the residual is
    x, y = case.points[measured], case.mapped[measured]
    there = np.linalg.norm(case.chain.map_points(inverse.map_points(y)) - y, axis=1)
    assert there.max(initial=0.0) <= residual.max + ROUNDING
    assert residual.mean < 0.1 * min(case.grid.spacing)
    back = np.linalg.norm(inverse.map_points(y) - x, axis=1)  # T stretches by no less than a half here
    assert back.max(initial=0.0) <= 2.5 * residual.max + ROUNDING


@settings(max_examples=15)
@given(CASES)
def test_points_go_back_within_the_residual_that_is_reported(case):
    x, residual = invert_points(case.chain, case.mapped)
    np.testing.assert_allclose(np.linalg.norm(case.chain.map_points(x) - case.mapped, axis=1), residual, atol=1e-9)
    assert residual.max() < 1e-2
    np.testing.assert_allclose(x, case.points, atol=3 * residual.max() + ROUNDING)


# Units do not matter


def scaled_grid(grid, factor):
    return Grid(
        grid.size, *(tuple(factor * v for v in values) for values in (grid.spacing, grid.origin)), grid.direction
    )


def scaled(link, factor):
    transform = link.transform
    if isinstance(transform, MatrixTransform):
        other = MatrixTransform(transform.matrix, factor * transform.centre, factor * transform.translation)
    elif isinstance(transform, BSplineTransform):
        other = BSplineTransform(factor * transform.coefficients, scaled_grid(transform.grid, factor))
    else:
        other = DisplacementField(np.float32(factor) * transform.vectors, scaled_grid(transform.grid, factor))
    return Link(other, link.combine)


@settings(max_examples=20)
@given(CASES, st.sampled_from([0.001, 0.1, 25.4, 1000.0]))
def test_another_unit_of_length_gives_the_same_result(case, factor):
    """Metres, centimetres, inches: T, the Jacobian and the warped image are the same, in that unit."""
    other = TransformChain(tuple(scaled(link, factor) for link in case.chain.links))
    np.testing.assert_allclose(other.map_points(factor * case.points) / factor, case.mapped, atol=ROUNDING)
    grid = scaled_grid(case.grid, factor)
    ours, theirs = (c.displacement_on(g) for c, g in ((case.chain, case.grid), (other, grid)))
    np.testing.assert_allclose(theirs.jacobian_determinant(), ours.jacobian_determinant(), atol=5e-3)
    array = np.random.default_rng(0).normal(size=case.grid.shape).astype(np.float32)
    warped = [
        Image(array, g).resampled(g, c.to_sitk(g)).array[1:-1, 1:-1, 1:-1]
        for c, g in ((case.chain, case.grid), (other, grid))
    ]
    differs = np.abs(warped[0] - warped[1]) > 5e-3
    assert differs.mean() < 0.02  # at the border of the image rounding decides


@settings(max_examples=20)
@given(CASES, ORIGINS)
def test_where_the_origin_lies_does_not_matter(case, shift):
    shift = np.array(shift)

    def moved(grid):
        return Grid(grid.size, grid.spacing, tuple(np.array(grid.origin) + shift), grid.direction)

    links = []
    for link in case.chain.links:
        transform = link.transform
        if isinstance(transform, MatrixTransform):
            other = MatrixTransform(transform.matrix, transform.centre + shift, transform.translation)
        elif isinstance(transform, BSplineTransform):
            other = BSplineTransform(transform.coefficients, moved(transform.grid))
        else:
            other = DisplacementField(transform.vectors, moved(transform.grid))
        links.append(Link(other, link.combine))
    found = TransformChain(tuple(links)).map_points(case.points + shift) - shift
    np.testing.assert_allclose(found, case.mapped, atol=ROUNDING)


@settings(max_examples=30)
@given(GRIDS, st.floats(0.4, 6.0))
def test_other_voxels_fill_the_same_box(grid, spacing):
    found = grid.isotropic(spacing)
    extent, wanted = (np.array(g.size) * g.spacing for g in (found, grid))
    assert (extent >= wanted - 1e-3 * spacing).all()
    assert (extent < wanted + spacing).all()
    np.testing.assert_allclose(found.corners()[0], grid.corners()[0], atol=1e-9 * 1000)
