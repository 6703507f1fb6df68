"""What a stage's displacement field must not change: rigid parts stay rigid, and others keep their volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.transforms.chain import TransformChain, link_field

if TYPE_CHECKING:
    from regnet_itk.data.grid import FloatArray, Grid
    from regnet_itk.refinement.rigid_parts import RigidParts
    from regnet_itk.stages.base import Detail

RIGID_WITHIN = 0.2
"""mm; of a part that is farther from rigid a user is warned."""

VOLUME_WITHIN = 0.02
"""|det J - 1|; of a part whose volume changes by more anywhere a user is warned."""

_STEP = 0.05  # mm, for derivatives of T0
_SMALLEST_DETERMINANT = 0.05

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Protected:
    """A field that protects parts of the fixed image, and how well.

    Parameters
    ----------
    u : DisplacementField
    deviations : mapping
        By the number of each rigid part: how far T is from a rigid motion at each voxel of it (n,), in mm.
    volume_changes : mapping
        By the number of each part that keeps its volume: |det J - 1| of T, at most.
    folding : float
        Share of the field's cells that fold, or nearly so.
    """

    u: DisplacementField
    deviations: Mapping[int, FloatArray] = field(default_factory=dict)
    volume_changes: Mapping[int, float] = field(default_factory=dict)
    folding: float = 0.0

    def details(self) -> dict[str, Detail]:
        """Return what ``registration.json`` tells of each part."""
        rigid = {f"rigid_{number}_deviation_mm": round(float(mm.max()), 4) for number, mm in self.deviations.items()}
        volume = {f"volume_{number}_largest_change": round(share, 5) for number, share in self.volume_changes.items()}
        return {**rigid, **volume}

    def warnings(self) -> Iterator[str]:
        """Say what could not be protected, a sentence each."""
        for number, mm in self.deviations.items():
            if mm.max() > RIGID_WITHIN:
                yield (
                    f"part {number} of the rigid mask is up to {mm.max():.2g} mm from a rigid motion (more than "
                    f"{RIGID_WITHIN:g} mm at {(mm > RIGID_WITHIN).mean():.2%} of it), as it touches a part that moves "
                    f"otherwise; give both one number, or leave {max(self.u.grid.spacing) * 2:g} mm between them"
                )
        for number, share in self.volume_changes.items():
            if share > VOLUME_WITHIN:
                yield (
                    f"the volume of part {number} of the volume mask changes by up to {share:.2g} of itself, because "
                    "what is around it cannot make up for more; give the mask to fewer or smaller parts"
                )
        if self.folding and (self.deviations or self.volume_changes):
            yield (
                f"the protected parts cannot be kept without folding: det J is next to 0 or below it at "
                f"{self.folding:.2%} of the field; parts that lie close may move against each other"
            )


@dataclass(frozen=True, eq=False)
class Protection:
    """What is to be protected.

    Parameters
    ----------
    rigid, volume : Image, optional
        Labels on the grid of the fixed image: what moves rigidly, and what keeps its volume, each number by itself.
    ignored : Image, optional
        Where the fixed image says nothing of how a part moves, on the same grid.
    unfold : bool
        Whether the field is smoothed around the parts where it folds.
    """

    rigid: Image | None = None
    volume: Image | None = None
    ignored: Image | None = None
    unfold: bool = True

    @property
    def inside(self) -> Image | None:
        """Where the fixed image is protected; None if it is nowhere."""
        masks = [mask for mask in (self.rigid, self.volume) if mask is not None]
        return Image(np.logical_or.reduce([mask.array != 0 for mask in masks]), masks[0].grid) if masks else None

    def overlap(self) -> str | None:
        """Say it if a part is to be rigid and to keep its volume; the first wins."""
        if self.rigid is None or self.volume is None:
            return None
        both = np.count_nonzero((self.rigid.array != 0) & (self.volume.array != 0))
        return f"the rigid and the volume mask share {both} voxels, which move rigidly" if both else None

    def enforce(self, u: DisplacementField, initial: TransformChain) -> Protected:
        """Change a field so that T(x) = T0(x + u(x)) protects all that is to be.

        What is rigid comes first, and is held from then on, as is each part that keeps its volume after it. In the end
        the field is smoothed where it folds, if that is wanted, but for what is held, as far as that helps.

        Parameters
        ----------
        u : DisplacementField
            In mm, LPS, on the fixed side.
        initial : TransformChain
            T0.
        """
        from regnet_itk.refinement.kept_volume import keep_volume, volume_changes
        from regnet_itk.refinement.labels_on_fields import cells_of, find_owners, list_labels
        from regnet_itk.refinement.rigid_parts import hold_rigid
        from regnet_itk.refinement.unfolding import LEAST, least_determinants, unfold_around

        if self.rigid is None and self.volume is None:
            return Protected(u)
        before, held = _Before(initial, u.grid), np.zeros(u.grid.shape, dtype=bool)
        rigid = self._rigid_parts(initial.then(link_field(u)))
        if rigid is not None:
            u, held = hold_rigid(u, rigid, before.inverse)
        kept = [] if self.volume is None else list(list_labels(self.volume))
        owners = find_owners(kept, u.grid)
        for index in range(1, len(kept) + 1):
            part = owners == index
            u, held = keep_volume(u, part, before.log_volume, held), held | part
        if self.unfold:
            u = unfold_around(u, held)
        return Protected(
            u,
            {} if rigid is None else rigid.deviations(initial.then(link_field(u)).map_points),
            {label.number: float(np.abs(volume_changes(u, cells_of(label, u.grid), before.log_volume)).max(initial=0.0))
             for label in kept},
            float((least_determinants(u.vectors, u.grid) < LEAST).mean()),
        )  # fmt: skip

    def _rigid_parts(self, chain: TransformChain) -> RigidParts | None:
        from regnet_itk.refinement.labels_on_fields import list_labels
        from regnet_itk.refinement.rigid_parts import fit_parts

        if self.rigid is None:
            return None
        ignored = None if self.ignored is None else self.ignored.array != 0
        return fit_parts(list(list_labels(self.rigid)), chain.map_points, ignored)


class _Before:
    """The transform before a stage: its inverse, and its det J."""

    def __init__(self, initial: TransformChain, grid: Grid) -> None:
        self._chain, self._grid, self._matrix = initial, grid, initial.as_matrix()

    def inverse(self, points: FloatArray) -> FloatArray:
        """Return T0^-1 of points (n, 3)."""
        from regnet_itk.transforms.inverse import invert_matrix, invert_points

        if self._matrix is not None:
            return invert_matrix(self._matrix).map_points(points)
        return invert_points(self._chain, points, self._grid)[0]

    def log_volume(self, points: FloatArray) -> FloatArray:
        """Return the logarithm of det J of T0 at points (n, 3)."""
        if self._matrix is not None:
            return np.full(len(points), np.log(max(np.linalg.det(self._matrix.matrix), _SMALLEST_DETERMINANT)))
        steps = _STEP * np.eye(3)
        columns = [self._chain.map_points(points + s) - self._chain.map_points(points - s) for s in steps]
        determinants = np.linalg.det(np.stack(columns, axis=-1) / (2 * _STEP))
        return np.log(np.maximum(determinants, _SMALLEST_DETERMINANT))
