"""Landmarks that guide a RegNet stage: corrected by them, the network looks again where it had failed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray
from regnet_itk.transforms.point_mapping import map_landmarks

if TYPE_CHECKING:
    from regnet_itk.refinement.agreement import InstancePair
    from regnet_itk.refinement.terms import Term
    from regnet_itk.stages.base import Detail, ImagePair, RunOptions
    from regnet_itk.stages.regnet_look import NetworkLook
    from regnet_itk.stages.regnet_settings import RegNetSettings
    from regnet_itk.transforms.chain import TransformChain

_FAILED = 5.0
"""mm. A network that is farther off at a point, and by `_LOOSE` of the points' own errors, looks again."""

_LOOSE = 4.0

_PULLING = 2.5
"""Points that are found to be less exact than they are said to be pull from so many of their own errors on, which are
along each axis: of 10 such points, one is farther off than this."""

_BETTER = 0.75
"""What it then finds counts if it is off by less than this part of before: between the points it may be worse."""


@dataclass(frozen=True, eq=False)
class GuidingLandmarks:
    """Where the points of one pair should be displaced to, for one stage.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        In the fixed image, mm, LPS.
    wanted : ndarray, shape (n, 3)
        Their displacements u, mm, LPS: T0(x + u(x)) is the moving image's point.
    names : tuple of str
        What to call each in a message.
    heard : ndarray of bool, shape (n,)
        Those that tell more than the field does. Where the images take the field's side, a point neither corrects nor
        pulls: it tells that nothing is to be corrected there.
    weight : float
        Of the points in instance optimisation.
    radii : ndarray, shape (n,)
        Of trust, mm.
    options : RunOptions
    stage : str
        Its name, for the log.
    left_out : tuple of str
        The names of those that are not used.
    looseness : float
        How large the points' own errors were found to be along each axis, in their radii of trust.
    """

    points: FloatArray
    wanted: FloatArray
    names: tuple[str, ...]
    heard: npt.NDArray[np.bool_]
    weight: float
    radii: FloatArray
    options: RunOptions
    stage: str
    left_out: tuple[str, ...] = ()
    looseness: float = 0.0

    @classmethod
    def of(
        cls, pair: ImagePair, initial: TransformChain, settings: RegNetSettings, options: RunOptions, stage: str
    ) -> GuidingLandmarks | None:
        """Return the landmarks of a pair as they guide a stage that starts from `initial`; None if they are not to."""
        if pair.fixed_landmarks is None or pair.moving_landmarks is None or not settings.landmark_weight:
            return None
        back = map_landmarks(initial, pair.moving_landmarks, moving_to_fixed=True, fixed_grid=pair.fixed.grid)
        points = pair.fixed_landmarks.points
        names = tuple(_name(pair, number) for number in range(len(points)))
        found = cls(
            points, back.mapped - points, names, np.ones(len(points), dtype=bool), settings.landmark_weight,
            _radii(pair, settings.landmark_radius), options, stage,
        )  # fmt: skip
        reasons = {int(number): "the transform so far leads nowhere to it" for number in back.failed}
        return found._without(reasons)

    def lead(self, u: DisplacementField, look: NetworkLook) -> tuple[DisplacementField, GuidingLandmarks]:
        """Return a predicted field as the points want it, and those of the points that are right.

        Parameters
        ----------
        u : DisplacementField
            What the network predicted, mm, LPS.
        look : NetworkLook
            How it did so.
        """
        kept = self._believed(u, look)
        if not kept.heard.any():
            return u, kept
        off = kept._off(u)
        self.options.log.debug(f"{self.stage}: off by {off.mean():.2f} mm at the landmarks, {off.max():.1f} mm at most")
        led, kept = kept._corrected(u)
        if (off <= np.maximum(_FAILED, _LOOSE * kept.looseness * kept.radii[kept.heard])).all():
            return led, kept
        again = look.again(led)
        after = kept._off(again)
        self.options.log.debug(f"{self.stage}: after a second look {after.mean():.2f} mm, {after.max():.1f} mm at most")
        if after.mean() > _BETTER * off.mean():
            return led, kept
        kept = kept._believed(again, look)  # what was hidden in the failure may show now
        return kept._corrected(again) if kept.heard.any() else (again, kept)

    def _believed(self, u: DisplacementField, look: NetworkLook) -> GuidingLandmarks:
        """Return the points that are not found to be wrong beside a field, and which of them tell more than it."""
        from regnet_itk.networks.devices import limited_threads
        from regnet_itk.refinement.wrong_points import PointViews, doubt_points

        with limited_threads(self.options.threads):
            views = PointViews(*look.images[0], look.world.intensity_range, self.points)
            doubts = doubt_points(self.points, u.at(self.points), self.wanted, self.radii, views)
        if count := doubts.outvoted.sum():
            self.options.log.debug(
                f"{self.stage}: the images prefer the field at {count} of {len(self.points)} landmarks"
            )
        heard = replace(self, heard=~doubts.outvoted)
        return heard._without({point.number: f"it is {point.describe()}" for point in doubts.wrong})

    def terms(self, pair: InstancePair) -> list[Term]:
        """Return what the points add to instance optimisation on a pair."""
        from regnet_itk.refinement.landmark_term import LandmarkTerm

        if not self.heard.any():
            return []
        grid = pair.fixed.grid
        volume = float(pair.region.array.sum()) * float(np.prod(grid.spacing))
        pulling = _PULLING * self.looseness if self.looseness > 1.0 else 1.0
        points, wanted, radii = (each[self.heard] for each in (self.points, self.wanted, pulling * self.radii))
        return [LandmarkTerm(grid, points, wanted, radii=radii, weight=self.weight, volume=volume)]

    def details(self) -> dict[str, Detail]:
        """Return what is recorded of them."""
        return {
            "guiding_landmarks": len(self.points),
            "landmarks_outvoted": int((~self.heard).sum()),
            "landmarks_left_out": ", ".join(self.left_out),
        }

    def _off(self, u: DisplacementField) -> FloatArray:
        """Return how far a field is off at the points that are heard, in mm."""
        off: FloatArray = np.linalg.norm((u.at(self.points) - self.wanted)[self.heard], axis=1)
        return off

    def _corrected(self, u: DisplacementField) -> tuple[DisplacementField, GuidingLandmarks]:
        """Return a field as the points want it, and these with the size of their own errors."""
        from regnet_itk.refinement.landmark_correction import Correction, correct_field, fit_spread

        residuals = self.wanted - u.at(self.points)
        looseness = fit_spread(self.points, residuals, self.radii).looseness
        loose = looseness * self.radii
        told = np.where(self.heard[:, None], residuals, 0.0)
        corrected = correct_field(u, Correction(self.points, told, loose, fit_spread(self.points, told, loose)))
        return corrected, replace(self, looseness=looseness)

    def _without(self, reasons: dict[int, str]) -> GuidingLandmarks:
        """Return the landmarks without some, and say of each why."""
        for number, reason in reasons.items():
            self.options.log.warning(f"{self.stage}: landmark {self.names[number]} is not used: {reason}")
        rest = np.setdiff1d(np.arange(len(self.points)), list(reasons))
        return replace(
            self, points=self.points[rest], wanted=self.wanted[rest], names=tuple(self.names[i] for i in rest),
            heard=self.heard[rest], radii=self.radii[rest],
            left_out=(*self.left_out, *(self.names[number] for number in reasons)),
        )  # fmt: skip


def _radii(pair: ImagePair, usual: float) -> FloatArray:
    """Return the points' radii of trust in mm: the larger one of those that both files tell, or else the usual one."""
    assert pair.fixed_landmarks is not None
    assert pair.moving_landmarks is not None
    told = np.full(len(pair.fixed_landmarks), np.nan)
    for landmarks in (pair.fixed_landmarks, pair.moving_landmarks):
        if landmarks.trust_radii is not None:
            told = np.fmax(told, landmarks.trust_radii)
    return np.where(np.isnan(told), usual, told)


def _name(pair: ImagePair, number: int) -> str:
    """Return the number of a landmark, from 0, with the name that one of the files has for it."""
    assert pair.fixed_landmarks is not None
    assert pair.moving_landmarks is not None
    for landmarks in (pair.fixed_landmarks, pair.moving_landmarks):
        if landmarks.names and landmarks.names[number]:
            return f"{number} '{landmarks.names[number]}'"
    return str(number)
