"""What a registration is given, read and checked: images and masks, landmarks, a transform to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, as_image, check_mask, check_registrable
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import Landmarks, check_landmarks, read_landmarks
from regnet_itk.errors import ImageError
from regnet_itk.metrics.measures import ErrorSummary, summarise_errors
from regnet_itk.stages.base import ImagePair
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain


def image_pair(fixed: Any, moving: Any, fixed_mask: Any = None, moving_mask: Any = None) -> ImagePair:
    """Read or take two images and their masks, and check that they can be registered.

    Parameters
    ----------
    fixed, moving : itk.Image, SimpleITK.Image, Image, or path
    fixed_mask, moving_mask : like the images, optional
        On the grids of their images.

    Raises
    ------
    ImageError
        If one cannot be read, is not 3D and scalar, has NaN, is constant, or a mask is empty or on another grid.
    """
    images = {}
    for role, given in (("fixed", fixed), ("moving", moving)):
        images[role] = _image(given, f"{role} image")
        check_registrable(images[role], f"{role} image")
    masks: dict[str, Image | None] = {}
    for role, given in (("fixed", fixed_mask), ("moving", moving_mask)):
        masks[role] = None if given is None else _image(given, f"{role} mask")
        mask = masks[role]
        if mask is not None:
            check_mask(mask, images[role], role)
    return ImagePair(images["fixed"], images["moving"], masks["fixed"], masks["moving"])


def _image(given: Any, role: str) -> Image:
    if isinstance(given, str | Path):
        return read_image(given, role)
    try:
        return as_image(given)
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from None


def initial_chain(initial: str | Path | TransformChain | None) -> TransformChain:
    """Return the transform to start from: read from a file, given, or none at all."""
    if initial is None:
        return TransformChain()
    return initial if isinstance(initial, TransformChain) else read_chain(initial)


def input_paths(**given: Any) -> dict[str, str]:
    """Return where those of the inputs lie that were given as files, by their names."""
    return {name: str(Path(value).resolve()) for name, value in given.items() if isinstance(value, str | Path)}


@dataclass(frozen=True)
class LandmarkPair:
    """Corresponding points of the fixed and the moving image, (n, 3) in mm, LPS; None without landmarks."""

    fixed: FloatArray | None
    moving: FloatArray | None

    @classmethod
    def read(cls, fixed: Any, moving: Any, pair: ImagePair) -> LandmarkPair:
        """Read or take the landmarks of a pair.

        Parameters
        ----------
        fixed, moving : ndarray (n, 3), Landmarks or path, optional
            Both, or none.
        pair : ImagePair
            Their images.

        Raises
        ------
        PointsError
            If they cannot be read, do not correspond, or lie outside their images.
        """
        if fixed is None:
            return cls(None, None)
        of_fixed = _landmarks(fixed, pair.fixed.grid)
        of_moving = _landmarks(moving, pair.moving.grid)
        check_landmarks(of_fixed, of_moving, pair.fixed.grid, pair.moving.grid)
        return cls(of_fixed.points, of_moving.points)

    def swapped(self) -> LandmarkPair:
        """Return the landmarks of the way back."""
        return LandmarkPair(self.moving, self.fixed)

    def error_under(self, chain: TransformChain) -> ErrorSummary | None:
        """Return the error of the landmarks under a transform; None without landmarks."""
        if self.fixed is None or self.moving is None:
            return None
        return summarise_errors(chain.map_points(self.fixed) - self.moving)


def _landmarks(given: Any, grid: Grid) -> Landmarks:
    if isinstance(given, Landmarks):
        return given
    if isinstance(given, str | Path):
        return read_landmarks(given, grid)
    return Landmarks(np.asarray(given, dtype=float))
