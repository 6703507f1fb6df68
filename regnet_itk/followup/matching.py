"""Which lesion of one image is which of the other: through the transform, with a gate as wide as its error allows.

A lesion of the fixed image is looked for where T takes it. How far from there its centre may lie follows from three
things: the transform's error, of which 90 % lie within a radius r, as of a normal distribution with a deviation of
r / 2.5 along each axis; a lesion that grew to one side, which moves its centre by up to the difference of both radii,
taken as three deviations; and half a voxel of each image. Deviations add up in squares. The gate is 4.03 deviations,
which 99.9 % of the pairs pass if errors are normal. Of all ways to pair lesions within their gates, one to one, the
likeliest is taken; a pair at the gate's end is as likely as one lesion that went and another that came. Where another
way is more than a twentieth as likely, that is told. Lesions that are left over, and of which half or more lies in
another one, make groups: of one that split, or of several that merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.followup.expected_errors import ErrorAt, ErrorSource
from regnet_itk.followup.lesions import REACH, Lesion
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.inverse import invert_points
from regnet_itk.transforms.point_mapping import NO_INVERSE

_RADIUS = math.sqrt(6.251)  # deviations of a normal distribution in space within which 90 % lie
_GATE = math.sqrt(16.27)  # and 99.9 %
_ALONE = _GATE**2 / 4  # what a lesion without a partner costs; a pair costs half of its squared distance in deviations
_AS_LIKELY = math.log(20)
_WITHIN = 0.5  # of a lesion, for it to be a part of another


@dataclass(frozen=True, eq=False)
class Group:
    """Lesions that are one and the same; by their numbers.

    Parameters
    ----------
    fixed, moving : tuple of int
        One each for a lesion that was found again; none for one that is there in one image only.
    distance : float or None
        mm, from where the transform takes the fixed lesion to the moving one; of one to one.
    gate : float or None
        mm; how far it might be.
    error : ErrorAt
        Of the transform at its place.
    elsewhere : ndarray, shape (3,), or None
        Of a lesion that is there in one image only, its place in the other one; None if it has none there.
    in_view : bool
        Whether that place lies in the other image.
    doubts : tuple of str
        What else might be so.
    """

    fixed: tuple[int, ...]
    moving: tuple[int, ...]
    error: ErrorAt
    distance: float | None = None
    gate: float | None = None
    elsewhere: FloatArray | None = None
    in_view: bool = True
    doubts: tuple[str, ...] = ()


def match_lesions(
    fixed: Sequence[Lesion],
    moving: Sequence[Lesion],
    chain: TransformChain,
    grids: tuple[Grid, Grid],
    errors: ErrorSource,
) -> list[Group]:
    """Find which lesion is which.

    Parameters
    ----------
    fixed, moving : sequence of Lesion
    chain : TransformChain
        T, fixed to moving.
    grids : tuple of Grid
        Of the fixed and of the moving image.
    errors : ErrorSource

    Returns
    -------
    list of Group
        Every lesion is in one of them. Those of the fixed image come first, in their order.
    """
    return _Matching(fixed, moving, chain, grids, errors).groups()


class _Matching:
    """The work on one pair of images."""

    def __init__(
        self, fixed: Sequence[Lesion], moving: Sequence[Lesion], chain: TransformChain, grids: tuple[Grid, Grid],
        errors: ErrorSource,
    ) -> None:  # fmt: skip
        self._fixed, self._moving, self._grids = fixed, moving, grids
        self._mapped = [chain.map_points(lesion.points) for lesion in fixed]
        self._back, self._residual = _inverted(chain, moving, grids[0])
        self._errors = errors.at([lesion.points for lesion in fixed])
        self._back_errors = errors.at(self._back)
        self._distance, self._deviation = self._distances()
        self._partner = self._assign()

    def _distances(self) -> tuple[FloatArray, FloatArray]:
        """Return the distance (n, m) of all lesions' centres, and the deviation that it has for the same lesion."""
        ends = np.array([points.mean(axis=0) for points in self._mapped]).reshape(-1, 1, 3)
        starts = np.array([lesion.centre for lesion in self._moving]).reshape(1, -1, 3)
        radii = [[(lesion.effective or 0.0) / 2 for lesion in lesions] for lesions in (self._fixed, self._moving)]
        grown = (np.array(radii[0]).reshape(-1, 1) - np.array(radii[1]).reshape(1, -1)) / 3
        transform = np.array([error.radius for error in self._errors]).reshape(-1, 1) / _RADIUS
        voxels = sum((float(np.cbrt(np.prod(grid.spacing))) / 2) ** 2 for grid in self._grids)
        return np.linalg.norm(ends - starts, axis=-1), np.sqrt(transform**2 + grown**2 + voxels)

    def _assign(self) -> dict[int, int]:
        """Return the moving partner of each fixed lesion that has one."""
        cost = 0.5 * (self._distance / self._deviation) ** 2
        self._cost = np.where(cost <= 0.5 * _GATE**2, cost, np.inf)
        self._parts = _connected(np.isfinite(self._cost))
        return {i: j for part in self._parts for i, j in _cheapest(self._cost, *part)[1].items()}

    def groups(self) -> list[Group]:
        joined = self._joined()
        doubts = self._doubts()
        groups = []
        for fixed, moving in joined:
            said = tuple(
                dict.fromkeys(
                    text
                    for side, numbers in (("fixed", fixed), ("moving", moving))
                    for number in numbers
                    for text in doubts.get((side, number), ())
                )
            )
            groups.append(self._group(fixed, moving, said if len(fixed) + len(moving) < 3 else ()))
        return groups

    def _group(self, fixed: tuple[int, ...], moving: tuple[int, ...], doubts: tuple[str, ...]) -> Group:
        error = self._errors[fixed[0]] if fixed else self._back_errors[moving[0]]
        if len(fixed) == len(moving) == 1:
            i, j = fixed[0], moving[0]
            gate = _GATE * self._deviation[i, j]
            return Group(fixed, moving, error, float(self._distance[i, j]), float(gate), doubts=doubts)
        if fixed and moving:
            return Group(fixed, moving, error, doubts=doubts)
        if fixed:
            place = self._mapped[fixed[0]].mean(axis=0)
            return Group(fixed, moving, error, None, None, place, bool(self._grids[1].contains(place)), doubts)
        place = self._back[moving[0]].mean(axis=0)
        there = self._residual[moving[0]] <= NO_INVERSE and bool(self._grids[0].contains(place))
        return Group(fixed, moving, error, None, None, place if there else None, there, doubts)

    def _joined(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the lesions of each group: partners, and those left over that are a part of another lesion."""
        n, m = len(self._fixed), len(self._moving)
        edges = np.zeros((n + m, n + m), dtype=bool)
        for i, j in self._partner.items():
            edges[i, n + j] = True
        for i in set(range(n)) - set(self._partner):
            self._add_whole(edges, [self._share(self._mapped[i], self._errors[i], other) for other in self._moving], i)
        for j in set(range(m)) - set(self._partner.values()):
            shares = [self._share(self._back[j], self._back_errors[j], other) for other in self._fixed]
            self._add_whole(edges, shares, n + j)
        count, label = connected_components(edges, directed=False)
        members = [np.flatnonzero(label == k).tolist() for k in range(count)]
        return [(tuple(k for k in each if k < n), tuple(k - n for k in each if k >= n)) for each in members]

    def _add_whole(self, edges: npt.NDArray[np.bool_], shares: list[float], number: int) -> None:
        """Join a lesion to that of the other image in which most of it lies, if half of it lies in any."""
        if shares and max(shares) >= _WITHIN:
            other = int(np.argmax(shares))
            edges[number, other + (len(self._fixed) if number < len(self._fixed) else 0)] = True

    def _share(self, points: FloatArray, error: ErrorAt, other: Lesion) -> float:
        """Return which part of points lies in a lesion, or no further beside it than the transform is off."""
        if other.solid is None or len(points) < 2:
            return 0.0
        return float((other.solid.at(points) <= min(error.expected, REACH / 2)).mean())

    def _doubts(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """Return what else is likely, for the lesions of which there is such a thing."""
        found: dict[tuple[str, int], list[str]] = {}
        for part in self._parts:
            best, chosen = _cheapest(self._cost, *part)
            for i in part[0]:
                for j in [None, *(j for j in part[1] if np.isfinite(self._cost[i, j]))]:
                    if chosen.get(i) == j:
                        continue
                    if _cheapest(self._cost, *part, forced=(i, j))[0] - best < _AS_LIKELY:
                        self._tell(found, i, j, chosen.get(i))
        return {lesion: tuple(texts) for lesion, texts in found.items()}

    def _tell(self, found: dict[tuple[str, int], list[str]], i: int, j: int | None, chosen: int | None) -> None:
        mine = self._fixed[i].name
        if j is None:
            text = f"fixed {mine} may as well have gone, and another have come"
            found.setdefault(("fixed", i), []).append(text)
            return
        text = f"fixed {mine} may be moving {self._moving[j].name}"
        if chosen is not None:
            text += f" as well as {self._moving[chosen].name}"
        for lesion in (("fixed", i), ("moving", j)):
            found.setdefault(lesion, []).append(text)


def _inverted(chain: TransformChain, moving: Sequence[Lesion], grid: Grid) -> tuple[list[FloatArray], list[float]]:
    """Return where the points of moving lesions lie in the fixed image, and how far that is off for each, in mm."""
    if not moving:
        return [], []
    counts = np.cumsum([len(lesion.points) for lesion in moving])[:-1]
    found, residual = invert_points(chain, np.concatenate([lesion.points for lesion in moving]), grid)
    return np.split(found, counts), [float(np.median(part)) for part in np.split(residual, counts)]


def _connected(near: npt.NDArray[np.bool_]) -> list[tuple[list[int], list[int]]]:
    """Return the lesions that compete for each other, in parts that have nothing to do with one another."""
    n, m = near.shape
    edges = np.zeros((n + m, n + m), dtype=bool)
    edges[:n, n:] = near
    count, label = connected_components(edges, directed=False)
    members = [np.flatnonzero(label == k) for k in range(count)]
    return [([int(k) for k in each if k < n], [int(k - n) for k in each if k >= n]) for each in members]


def _cheapest(
    cost: FloatArray, fixed: list[int], moving: list[int], forced: tuple[int, int | None] | None = None
) -> tuple[float, dict[int, int]]:
    """Return the least cost of pairing lesions, or leaving them alone, and the pairs.

    Parameters
    ----------
    cost : ndarray, shape (n, m)
        Of pairs; infinite for those beyond their gate.
    fixed, moving : list of int
        The lesions that take part.
    forced : tuple, optional
        A fixed lesion and its partner, or None for it to be alone.
    """
    n, m = len(fixed), len(moving)
    costs = np.full((n + m, n + m), np.inf)
    costs[:n, :m] = cost[np.ix_(fixed, moving)]
    costs[:n, m:][np.diag_indices(n)] = _ALONE
    costs[n:, :m][np.diag_indices(m)] = _ALONE
    costs[n:, m:] = 0.0
    if forced is not None:
        row = fixed.index(forced[0])
        column = m + row if forced[1] is None else moving.index(forced[1])
        kept = costs[row, column]
        costs[row] = np.inf
        costs[row, column] = kept
    rows, columns = linear_sum_assignment(costs)
    chosen = {fixed[r]: moving[c] for r, c in zip(rows, columns, strict=True) if r < n and c < m}
    return float(costs[rows, columns].sum()), chosen
