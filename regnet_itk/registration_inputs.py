"""What a registration is given, read and checked: images and masks, landmarks, a transform to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, check_mask, check_registrable
from regnet_itk.data.image_files import read_image_nd
from regnet_itk.data.image_nd import ImageND, as_image_nd
from regnet_itk.data.landmarks import Landmarks, check_landmarks, read_landmarks
from regnet_itk.data.suffixes import PARAMETER_SUFFIXES
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.metrics.measures import ErrorSummary, summarise_errors
from regnet_itk.stages.base import ImagePair
from regnet_itk.stages.guides import GUIDES, Guides, check_guides, check_something_left
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import list_transform_maps, read_chain

_READ_AT_ONCE = 2  # images; what unpacks them lets other threads work


@dataclass(frozen=True, eq=False)
class Images:
    """The images and masks of a registration, read; of two, three or four dimensions, all of the same.

    Parameters
    ----------
    fixed, moving : tuple of ImageND
        At least one of each.
    fixed_masks, moving_masks : tuple of ImageND
    """

    fixed: tuple[ImageND, ...]
    moving: tuple[ImageND, ...]
    fixed_masks: tuple[ImageND, ...] = ()
    moving_masks: tuple[ImageND, ...] = ()

    @classmethod
    def read(cls, fixed: Any, moving: Any, fixed_mask: Any = None, moving_mask: Any = None) -> Images:
        """Read or take images and masks.

        Parameters
        ----------
        fixed, moving, fixed_mask, moving_mask
            Each an itk.Image, SimpleITK.Image, Image or path, or several of them in a list; masks may be None.

        Raises
        ------
        ImageError
            If one cannot be read, is not scalar, or has other dimensions than the first fixed image.
        """
        given = {"fixed": fixed, "moving": moving, "fixed_masks": fixed_mask, "moving_masks": moving_mask}
        asked: list[tuple[str, str, Any]] = []
        for name, value in given.items():
            role = name.replace("_masks", " mask") if "_" in name else f"{name} image"
            each = as_several(value)
            if not each and "_" not in name:
                raise ImageError(f"no {role} was given")
            roles = [role] if len(each) == 1 else [f"{role} {number}" for number in range(len(each))]
            asked += [(name, *one) for one in zip(roles, each, strict=True)]
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            read = list(threads.map(lambda one: _image(one[2], one[1]), asked))
        dimension = read[0].array.ndim
        for (_, said, _), image in zip(asked, read, strict=True):
            if image.array.ndim != dimension:
                raise ImageError(
                    f"the {said} has {image.array.ndim} dimensions and the fixed image {dimension}; "
                    "give images of the same number of dimensions"
                )
        found = {name: tuple(i for (n, *_), i in zip(asked, read, strict=True) if n == name) for name in given}
        return cls(**found)

    @property
    def dimension(self) -> int:
        """Of the images: 2, 3 or 4."""
        return self.fixed[0].array.ndim

    def to_pair(self) -> ImagePair:
        """Return them as what stages register, checked.

        Raises
        ------
        ImageError
            If an image is not 3D, has NaN, is constant, or a mask is empty or on another grid.
        """
        fixed, moving = (tuple(image.to_3d() for image in side) for side in (self.fixed, self.moving))
        masks = [tuple(mask.to_3d() for mask in side) for side in (self.fixed_masks, self.moving_masks)]
        for role, images, of_side in (("fixed", fixed, masks[0]), ("moving", moving, masks[1])):
            for image in images:
                check_registrable(image, f"{role} image")
            for number, mask in enumerate(of_side):
                check_mask(mask, images[min(number, len(images) - 1)], role)
        fixed_mask, moving_mask = (side[0] if side else None for side in masks)
        return ImagePair(
            fixed[0], moving[0], fixed_mask, moving_mask, fixed[1:], moving[1:], masks[0][1:], masks[1][1:]
        )  # fmt: skip


def image_pair(fixed: Any, moving: Any, fixed_mask: Any = None, moving_mask: Any = None) -> ImagePair:
    """Read or take two images and their masks, and check that they can be registered; see :class:`Images`.

    Raises
    ------
    ImageError
        If one cannot be read, is not 3D and scalar, has NaN, is constant, or a mask is empty or on another grid.
    """
    return Images.read(fixed, moving, fixed_mask, moving_mask).to_pair()


def as_several(given: Any) -> list[Any]:
    """Return what was given as a list: itself if it is one, one alone, or nothing for None."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _image(given: Any, role: str) -> ImageND:
    if isinstance(given, str | Path):
        return read_image_nd(given, role)
    try:
        return as_image_nd(given)
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from None


def check_both_or_none(fixed: Any, moving: Any, what: str) -> None:
    """Refuse landmarks of one image alone; `what` is how their arguments are called.

    Raises
    ------
    ParameterError
    """
    if (fixed is None) != (moving is None):
        raise ParameterError(f"landmarks are needed for both images (`fixed_{what}` and `moving_{what}`), or for none")


def read_guides(given: Guides[Any], image: Image, role: str) -> Guides[Image]:
    """Read or take what is known of an image.

    Parameters
    ----------
    given : Guides
        Each an itk.Image, SimpleITK.Image, Image or path.
    image : Image
    role : str
        "fixed" or "moving", for the messages.

    Raises
    ------
    ImageError
        If one cannot be read, is empty, holds anything but whole numbers, or lies on another grid than the image.
    """
    read = Guides(**{name: _image(value, f"{role} {name} mask").to_3d() for name, value in given.given()})
    check_guides(read, image, role)
    return read


def guides_of(files: Mapping[str, Path], role: str) -> Guides[Path]:
    """Return what is known of an image, "fixed" or "moving", of the files of a list of pairs, by their columns."""
    columns = {name: f"{role}_labels" if name == "label" else f"{role}_{name}" for name in GUIDES}
    return Guides(**{name: files.get(column) for name, column in columns.items()})


def with_guides(pair: ImagePair, fixed: Guides[Any], moving: Guides[Any]) -> ImagePair:
    """Return a pair with what is known of its images; see `read_guides`.

    Raises
    ------
    ImageError
        If one cannot be read or does not fit its image, or nothing of an image is left to compare.
    """
    of_fixed, of_moving = read_guides(fixed, pair.fixed, "fixed"), read_guides(moving, pair.moving, "moving")
    check_something_left(of_fixed.ignore, pair.fixed_mask, "fixed")
    check_something_left(of_moving.ignore, pair.moving_mask, "moving")
    return replace(pair, fixed_guides=of_fixed, moving_guides=of_moving)


def initial_chain(initial: str | Path | TransformChain | None) -> TransformChain:
    """Return the transform to start from: read from a file, given, or none at all."""
    if initial is None:
        return TransformChain()
    return initial if isinstance(initial, TransformChain) else read_chain(initial)


def initial_files(initial: str | Path | None) -> list[str]:
    """Return the files of the transform to start from: that which is given, and those from which it starts.

    Raises
    ------
    TransformError
        If one is missing or malformed.
    """
    if initial is None:
        return []
    if Path(initial).suffix.lower() not in PARAMETER_SUFFIXES:
        return [str(initial)]
    return [values.source for values in list_transform_maps(initial, numbers=False)]


def input_paths(**given: Any) -> dict[str, str]:
    """Return where those of the inputs lie that were given as files, by their names; of several, with a number."""
    return {
        f"{name}_{number}" if number else name: os.path.realpath(value)
        for name, values in given.items()
        for number, value in enumerate(as_several(values))
        if isinstance(value, str | Path)
    }


@dataclass(frozen=True)
class LandmarkPair:
    """Corresponding points of the fixed and the moving image; None without landmarks.

    Parameters
    ----------
    fixed, moving : Landmarks, optional
    guiding : bool
        Whether they guide the registration that they judge.
    """

    fixed: Landmarks | None
    moving: Landmarks | None
    guiding: bool = False

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
        return cls(of_fixed, of_moving)

    def swapped(self) -> LandmarkPair:
        """Return the landmarks of the way back."""
        return replace(self, fixed=self.moving, moving=self.fixed)

    def error_under(self, chain: TransformChain) -> ErrorSummary | None:
        """Return the error of the landmarks under a transform; None without landmarks."""
        if self.fixed is None or self.moving is None:
            return None
        found = summarise_errors(chain.map_points(self.fixed.points) - self.moving.points)
        return replace(found, guided=self.guiding)


def _landmarks(given: Any, grid: Grid) -> Landmarks:
    if isinstance(given, Landmarks):
        return given
    if isinstance(given, str | Path):
        return read_landmarks(given, grid)
    return Landmarks(np.asarray(given, dtype=float))
