"""Whether a pair of images is like those that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.networks.model import ModelDescription

_LUNG = -500.0  # HU: lung and air lie below, all else of a body above
_LEAST_LUNG = 1e-3  # share of the region
_OUTSIDE = -1000.0  # what resampling puts where an image has ended: it tells nothing about the image
_ENOUGH = 100_000  # voxels to judge an image by
_SLACK = 200.0  # HU below the range: air is -1024 in many files
_LEAST_IN_RANGE = 0.5  # share of the region
_COARSE = 3.0  # voxels of the network
_NEAR_CAPTURE_RANGE = 0.9

BoolArray = npt.NDArray[np.bool_]


def unlike_intensities(image: Image, inside: BoolArray, description: ModelDescription, role: str) -> str | None:
    """Say what is strange about the intensities of an image, for a model.

    Parameters
    ----------
    image : Image
        Supposed to be in Hounsfield units.
    inside : bool array, shape (z, y, x)
        The region, on the grid of `image`.
    description : ModelDescription
        Of the model.
    role : str
        "fixed image" or "moving image", for the message.

    Returns
    -------
    str or None
        One sentence, or None if nothing is strange.
    """
    low, high = description.intensity_range
    values = image.array[inside]
    values = values[:: max(1, values.size // _ENOUGH)]
    values = values[np.isfinite(values) & (values != _OUTSIDE)]
    if not values.size:
        return None
    found = f"its values there are {_span(values)}"
    if low < _LUNG and np.mean(values < _LUNG) < _LEAST_LUNG:
        return (
            f"the {role} has hardly a value below {_LUNG:g} HU in the region, but the model was trained on chest CT: "
            f"{found}; perhaps it is not CT, or lacks the offset of -1024 HU"
        )
    share = float(np.mean((values >= low - _SLACK) & (values <= high)))
    if share < _LEAST_IN_RANGE:
        return (
            f"only {share:.0%} of the {role} lies within {low:g} to {high:g} HU, which is all that the model sees: "
            f"{found}; perhaps it is not in Hounsfield units"
        )
    return None


def _span(values: npt.NDArray[Any]) -> str:
    low, high = np.percentile(values, (1, 99))
    return f"{low:.0f} to {high:.0f}"


def coarse_voxels(grid: Grid, description: ModelDescription, role: str) -> str | None:
    """Say if the voxels of an image are more than three times as long as the network's.

    Parameters
    ----------
    grid : Grid
        Of the image as it was given.
    description : ModelDescription
    role : str
        "fixed image" or "moving image".
    """
    longest = max(grid.spacing)
    if longest <= _COARSE * description.voxel_size:
        return None
    return (
        f"the {role} has voxels of {longest:g} mm, the network works on {description.voxel_size:g} mm: it sees less "
        "detail than in training"
    )


def capture_range_reached(lengths: npt.NDArray[Any], longest: float, description: ModelDescription) -> str | None:
    """Say if displacements come near the largest that the model was trained on: it does not find larger ones.

    Parameters
    ----------
    lengths : array, shape (n,)
        |u| in mm inside the region.
    longest : float
        The largest |u| in mm anywhere.
    description : ModelDescription
    """
    limit = description.capture_range
    if limit <= 0 or not lengths.size:
        return None
    high = float(np.percentile(lengths, 95))
    if high > _NEAR_CAPTURE_RANGE * limit:
        advice = "use a better affine stage" + (
            "" if description.architecture == "coarse_to_fine" else ", or the model regnet_multistage, which sees more"
        )
        where = "past" if high > limit else "near"
        return (
            f"5 % of the displacements are {high:.1f} mm or more, {where} the {limit} mm that the model was trained "
            f"on: the stages before it left more than it can see; {advice}"
        )
    if longest > limit:
        return (
            f"displacements reach {longest:.1f} mm, past the {limit} mm that the model was trained on; check the "
            "stages before it"
        )
    return None
