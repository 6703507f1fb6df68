"""Chains at many points, on Torch, judged by the same chains at few points and by SimpleITK."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transform_cases import CHAINS, FIXED, affine, bspline, plain, smooth_field

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.transforms.chain import FEW_POINTS, Link, TransformChain
from regnet_itk.transforms.sampler import fill_in_blocks

ABRUPT = TransformChain((Link(DisplacementField(smooth_field().vectors + np.float32(3.0), FIXED)),))
ADDED = TransformChain((plain(affine()), Link(bspline(), "add"), Link(bspline())))
ALL = {**CHAINS, "added": ADDED, "abrupt": ABRUPT, "identity": TransformChain()}
MANY = FEW_POINTS + 7


def points_around(n=500):
    size = np.asarray(FIXED.size)
    return FIXED.index_to_point(np.random.default_rng(0).uniform(-0.3 * size, 1.3 * size, (n, 3)))


@pytest.mark.parametrize("name", ALL)
def test_many_points_are_mapped_as_few_inside_and_outside(name):
    chain = ALL[name]
    points = points_around(MANY)
    expected = np.concatenate([chain.map_points(part) for part in np.array_split(points, 3)])
    np.testing.assert_allclose(chain.map_points(points), expected, rtol=0, atol=3e-6)
    with_jacobian, _ = chain.sampler().map_with_jacobian(torch.from_numpy(points))
    np.testing.assert_allclose(with_jacobian.numpy(), expected, rtol=0, atol=3e-6)
    few = points[:24].reshape(2, 3, 4, 3)
    assert chain.map_points(few).shape == few.shape
    many = np.broadcast_to(points, (2, *points.shape))
    np.testing.assert_array_equal(chain.map_points(many)[1], chain.map_points(points))


@pytest.mark.parametrize("name", [name for name in ALL if name != "identity"])
def test_many_points_are_mapped_as_by_simpleitk(name):
    chain = ALL[name]
    points = points_around(MANY)
    judge = chain.to_sitk(FIXED)
    every = slice(None, None, 200)
    expected = np.array([judge.TransformPoint(p) for p in points[every].tolist()])
    np.testing.assert_allclose(chain.map_points(points)[every], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(70, 64, 50), (1, 300, 200), (400, 1, 200), (400, 200, 1)])
def test_a_field_is_itself_at_its_own_voxels(size):
    grid = Grid(size, FIXED.spacing, FIXED.origin, FIXED.direction)
    vectors = np.random.default_rng(1).normal(0, 20, (*grid.shape, 3)).astype(np.float32)
    found = TransformChain((Link(DisplacementField(vectors, grid)),)).displacement_on(grid)
    np.testing.assert_allclose(found.vectors, vectors, rtol=0, atol=4e-6)
    assert (found.vectors == vectors).mean() > 0.99


def test_points_that_are_not_finite_stay_so_and_do_no_harm():
    chain = ALL["affine, field"].then(plain(bspline()))
    points = points_around(MANY)
    expected = chain.map_points(points)
    points[5], points[6] = np.nan, np.inf
    found = chain.map_points(points)
    assert not np.isfinite(found[5:7]).any()
    np.testing.assert_array_equal(np.delete(found, [5, 6], axis=0), np.delete(expected, [5, 6], axis=0))


def test_fields_without_numba_map_alike(monkeypatch):
    chain, points = ALL["abrupt"], points_around(MANY)
    expected = chain.map_points(points)
    monkeypatch.setattr("regnet_itk.transforms.point_samplers.find_kernels", lambda _: None)
    np.testing.assert_allclose(chain.map_points(points), expected, rtol=0, atol=3e-6)


def test_few_points_do_not_wait_for_torch():
    program = (
        "import sys; from transform_cases import CHAINS, fixed_points\n"
        "for chain in CHAINS.values(): chain.map_points(fixed_points()); chain.to_sitk()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"], check=False,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("size", "step"), [((700, 90, 30), 4), ((3, 2, 1), 4), ((40_000, 3, 2), 1), ((20, 9, 33), 3)])
def test_blocks_cover_every_voxel_once_and_threads_stay_as_they_were(size, step):
    covered = np.zeros(size[::-1], np.int8)

    def fill(box, part):
        covered[box] += 1
        assert box[0].start % step == 0
        assert box[1].start % step == 0
        assert part.shape == covered[box].shape
        np.testing.assert_allclose(part.origin, [along.start for along in box[::-1]])

    before = torch.get_num_threads()
    fill_in_blocks(fill, Grid(size), step)
    assert (covered == 1).all()
    assert torch.get_num_threads() == before


def test_who_asks_while_others_work_alone_gets_as_many_threads_and_leaves_them():
    """In a process of its own: what a new thread finds is the process's number of threads."""
    code = """
import threading, torch
from regnet_itk.transforms.sampler import single_threads
torch.set_num_threads(3)
seen = {}
def count(name): seen[name] = torch.get_num_threads()
def within():
    with single_threads() as pool:
        seen["pool"] = pool._max_workers
        began.set()
        first_ended.wait()
began, first_ended = threading.Event(), threading.Event()
with single_threads() as pool:
    pool.submit(int).result()  # one of its threads has begun, with one of Torch's
    other = threading.Thread(target=within)
    other.start()
    began.wait()
first_ended.set()
other.join()
new = threading.Thread(target=count, args=["new"])
new.start()
new.join()
count("here")
assert seen == {"pool": 3, "new": 3, "here": 3}, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failure_in_a_block_is_told():
    def fill(box, part):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fill_in_blocks(fill, FIXED)
