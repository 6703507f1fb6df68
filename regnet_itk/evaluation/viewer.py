"""The volumes of a report's viewer: images and transforms on one grid along the patient's axes, small enough for a page.

The viewer's grid has cubic voxels along x, y, z of LPS, whatever the directions of the images are, so that its three
orthogonal cuts are the axial, coronal and sagittal plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regnet_itk.errors import ParameterError, PointsError
from regnet_itk.images import Image
from regnet_itk.points import Landmarks, check_landmarks
from regnet_itk.transforms import TransformChain

LONGEST_AXIS = 192
"""Voxels along the longest axis of the viewer's grid, at most."""


@dataclass(frozen=True)
class ViewerMethod:
    """What one method, or one stage of a registration, found.

    Parameters
    ----------
    name : str
        As it is shown; no two methods of a pair have the same.
    chain : TransformChain
        T, fixed to moving, mm, LPS. Warped image, displacement and det J are computed from it.
    """

    name: str
    chain: TransformChain


@dataclass(frozen=True)
class ViewerPair:
    """A pair of images with the methods that registered it.

    Parameters
    ----------
    name : str
        As it is shown.
    fixed, moving : Image
        As they were registered, on their own grids.
    methods : sequence of ViewerMethod
        In the order in which they are shown; may be empty.
    fixed_mask : Image, optional
        The viewer shows its surroundings; without one, the body of a CT, or the whole fixed image.
    fixed_landmarks, moving_landmarks : Landmarks, optional
        Point i of one corresponds to point i of the other.

    Raises
    ------
    ParameterError
        If two methods have the same name.
    PointsError
        If there are landmarks of one image only, or their numbers differ.
    """

    name: str
    fixed: Image
    moving: Image
    methods: Sequence[ViewerMethod] = ()
    fixed_mask: Image | None = None
    fixed_landmarks: Landmarks | None = None
    moving_landmarks: Landmarks | None = None

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ParameterError(f"pair '{self.name}': two methods have the same name: {', '.join(names)}")
        if (self.fixed_landmarks is None) != (self.moving_landmarks is None):
            raise PointsError(f"pair '{self.name}': landmarks are needed for both images, or for none")
        if self.fixed_landmarks is not None and self.moving_landmarks is not None:
            check_landmarks(self.fixed_landmarks, self.moving_landmarks)
