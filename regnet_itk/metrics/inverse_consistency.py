"""Inverse consistency: how far the registrations of a pair both ways are from each other's inverse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.data.grid import FloatArray, Grid, Triple
from regnet_itk.data.image import Image, check_mask
from regnet_itk.errors import ImageError
from regnet_itk.metrics.measures import PointMap

MAX_POINTS = 500_000
"""A region of more voxels is judged at as many of them, spread evenly: more would change no digit that is shown."""

_SLAB_VOXELS = 2_000_000


@dataclass(frozen=True)
class InverseConsistency:
    """Lengths in mm of T_backward(T_forward(x)) - x over voxels x of the fixed image.

    Small lengths do not say that a registration is right: both ways may be wrong alike. Large ones say that one is not.

    Parameters
    ----------
    mean, p95, max : float
        mm; `p95` interpolates linearly.
    where : tuple of float
        The point x (LPS, mm) of the largest one.
    count : int
        Number of points that were judged: those that T_forward takes into the moving image.
    share_judged : float
        Their share (0 to 1) of the points that were looked at; the others cannot be taken back.
    region_voxels : int
        Number of voxels in the region. All of them are looked at, or :data:`MAX_POINTS` of them.
    region : str
        Where: "fixed mask", "lungs", "body" or "fixed image".
    """

    mean: float
    p95: float
    max: float
    where: Triple
    count: int
    share_judged: float
    region_voxels: int
    region: str

    def describe(self) -> str:
        """Return it as one line of text."""
        x, y, z = self.where
        others = "; T_forward takes the others out of the moving image" if self.share_judged < 1 else ""
        return (
            f"|T_backward(T_forward(x)) - x| mean {self.mean:.2f} mm, 95 % {self.p95:.2f} mm, max {self.max:.2f} mm "
            f"at ({x:.1f}, {y:.1f}, {z:.1f}), over {self.count} points of the {self.region} "
            f"({self.share_judged:.1%}{others})"
        )


def inverse_consistency(
    forward: PointMap, backward: PointMap, fixed: Image, moving_grid: Grid, mask: Image | None = None
) -> InverseConsistency:
    """Measure T_backward(T_forward(x)) - x at the fixed image's voxels whose T_forward(x) lies in the moving image.

    Computed at the voxels themselves, slab by slab, so that nothing is interpolated and memory is bounded.

    Parameters
    ----------
    forward, backward : object with ``map_points``
        T from the fixed to the moving image, and the one from the moving to the fixed image, mm, LPS.
    fixed : Image
        The fixed image.
    moving_grid : Grid
        The moving image's grid.
    mask : Image, optional
        On the grid of `fixed`; only voxels that are not 0 count. Without it, the lungs are looked at; where none are
        found, the body; and the whole of an image that is not in Hounsfield units.

    Raises
    ------
    ImageError
        If the mask is empty or lies on another grid, or no voxel is taken into the moving image.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> grid = regnet_itk.Grid(size=(8, 8, 4), spacing=(1.0, 1.0, 2.0))
    >>> back = regnet_itk.invert_chain(chain, grid)
    >>> fixed = regnet_itk.Image(np.zeros(grid.shape, np.float32), grid)
    >>> everywhere = regnet_itk.Image(np.ones(grid.shape, np.uint8), grid)
    >>> regnet_itk.inverse_consistency(chain, back, fixed, grid, everywhere).max < 1e-9
    True
    """
    inside, region = _region(fixed, mask)
    lengths, furthest, looked_at = [np.empty(0)], (-1.0, (0.0, 0.0, 0.0)), 0
    for points in _points(inside, fixed.grid):
        looked_at += len(points)
        mapped = forward.map_points(points)
        judged = moving_grid.contains(mapped)
        if judged.any():
            start = points[judged]
            length = np.linalg.norm(backward.map_points(mapped[judged]) - start, axis=1)
            worst = int(length.argmax())
            x, y, z = start[worst].tolist()
            furthest = max(furthest, (float(length[worst]), (x, y, z)))
            lengths.append(length)
    found = np.concatenate(lengths)
    if not len(found):
        raise ImageError(
            f"the transform takes no voxel of the {region} into the moving image: the images do not overlap under it"
        )
    return InverseConsistency(
        float(found.mean()), float(np.percentile(found, 95)), furthest[0], furthest[1], len(found),
        len(found) / looked_at, int(inside.sum()), region,
    )  # fmt: skip


def _region(fixed: Image, mask: Image | None) -> tuple[npt.NDArray[np.bool_], str]:
    """Return which voxels (z, y, x) are looked at, and what they are called."""
    if mask is not None:
        check_mask(mask, fixed, "fixed")
        return np.asarray(mask.array != 0), "fixed mask"
    if is_hounsfield(fixed):
        from regnet_itk.anatomy.lungs import body_mask, lung_mask

        for name, find in (("lungs", lung_mask), ("body", body_mask)):
            try:
                inside = np.asarray(find(fixed).array)
            except ImageError:
                continue
            if inside.any():
                return inside, name
    return np.ones(fixed.grid.shape, dtype=bool), "fixed image"


def _points(inside: npt.NDArray[np.bool_], grid: Grid) -> Iterator[FloatArray]:
    """Give the points (n, 3) of the voxels that are looked at, slab by slab."""
    per_slice = inside.sum(axis=(1, 2))
    ranks = _ranks(int(per_slice.sum()))
    before = np.concatenate([[0], np.cumsum(per_slice)])
    for box in grid.slabs(_SLAB_VOXELS):
        slab, along = inside[box], box[0]
        low, high = np.searchsorted(ranks, before[[along.start, along.stop]])
        if high > low:
            voxels = np.flatnonzero(slab)[ranks[low:high] - before[along.start]]
            z, y, x = np.unravel_index(voxels, slab.shape)
            yield grid.index_to_point(np.stack([x, y, z + along.start], axis=-1))


def _ranks(count: int) -> npt.NDArray[np.int64]:
    """Return which of the `count` voxels of a region are looked at: all, or one at random of each of equal parts."""
    if count <= MAX_POINTS:
        return np.arange(count)
    parts = np.arange(MAX_POINTS) + np.random.default_rng(0).random(MAX_POINTS)
    return np.asarray(parts * (count / MAX_POINTS)).astype(np.int64)
