"""Whether a pair of images is like those that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.networks.model import read_model_header, shipped_models

if TYPE_CHECKING:
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.networks.model import ModelDescription
    from regnet_itk.networks.world import World

_LEAST_DARK = 1e-3  # share of the region
_ENOUGH = 100_000  # voxels to judge an image by
_SLACK = 1 / 6  # of the range's width, below it: air is -1024 HU in many files
_LEAST_IN_RANGE = 0.5  # share of the region
_COARSE = 3.0  # voxels of the network
_FEWEST = 8  # voxels along an axis
_SMALL = 0.5  # of the smallest image to train on
_NEAR_CAPTURE_RANGE = 0.9
_FAR_PAST = 1.25  # of the capture range: instance optimisation may lead a little past it

BoolArray = npt.NDArray[np.bool_]


def unlike_intensities(image: Image, inside: BoolArray, description: ModelDescription, role: str) -> str | None:
    """Say what is strange about the intensities of an image, for a model.

    Parameters
    ----------
    image : Image
        Supposed to be in the unit of the model's world.
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
    world = description.world
    low, high = world.intensity_range
    values = image.array[inside]
    values = values[:: max(1, values.size // _ENOUGH)]
    values = values[np.isfinite(values) & (values != world.background)]  # resampling put it where the image has ended
    if not values.size:
        return None
    found = f"its values there are {_span(values)}"
    if world.dark is not None and low < world.dark and np.mean(values < world.dark) < _LEAST_DARK:
        return (
            f"the {role} has hardly a value below {world.dark:g} {world.unit} in the region, but the model was trained "
            f"on {world.images}: {found}; {_perhaps(world)}"
        )
    share = float(np.mean((values >= low - _SLACK * (high - low)) & (values <= high)))
    if share < _LEAST_IN_RANGE:
        return (
            f"only {share:.0%} of the {role} lies within {low:g} to {high:g} {world.unit}, which is all that the model "
            f"sees: {found}; perhaps it is not {'in Hounsfield units' if world.unit == 'HU' else world.images}"
        )
    return None


def _perhaps(world: World) -> str:
    return "perhaps it is not CT, or lacks the offset of -1024 HU" if world.unit == "HU" else "perhaps it shows others"


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


def small_image(grid: Grid, description: ModelDescription, role: str) -> str | None:
    """Say if an image is far smaller than any that the model was trained on, or has hardly a voxel along an axis.

    Parameters
    ----------
    grid : Grid
        Of the image as it was given.
    description : ModelDescription
    role : str
        "fixed image" or "moving image".
    """
    extent = np.multiply(grid.size, grid.spacing)
    smallest = _SMALL * description.world.smallest
    if min(grid.size) >= _FEWEST and extent.min() >= smallest:
        return None
    return (
        f"the {role} has {grid.describe()}, too little for a network that was trained on images of "
        f"{description.world.smallest:g} mm or more along each axis: its result may fold; use a stage of elastix"
    )


def capture_range_reached(lengths: npt.NDArray[Any], longest: float, description: ModelDescription) -> str | None:
    """Say if displacements come near the largest that the model follows: it does not find larger ones.

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
        advice = f"use a better affine stage{_model_that_sees_more(description)}"
        where = "past" if high > limit else "near"
        return (
            f"5 % of the displacements are {high:.1f} mm or more, {where} the {limit} mm that the model follows: "
            f"the stages before it left more than it can see; {advice}"
        )
    if longest > _FAR_PAST * limit:
        return (
            f"displacements reach {longest:.1f} mm, far past the {limit} mm that the model follows; check the "
            "stages before it"
        )
    return None


def _model_that_sees_more(description: ModelDescription) -> str:
    """Return the advice to use another model that ships, if one for the same images sees larger displacements."""
    shipped = (read_model_header(path)[0] for path in shipped_models().values())
    fitting = [other for other in shipped if other.world.images == description.world.images]
    most = max(fitting, key=lambda other: other.capture_range, default=description)
    return f", or the model {most.name}, which sees more" if most.capture_range > description.capture_range else ""
