"""The expected error of any transform, from what the images look like under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet_itk.trust.clues import find_clues
from regnet_itk.trust.error_map import ErrorMap
from regnet_itk.trust.error_model import load_error_model

if TYPE_CHECKING:
    from regnet_itk.data.image import Image
    from regnet_itk.transforms.chain import TransformChain

_WIDENED = 1.5  # the radius, where the pair is unlike all that the model learnt from


def find_error_map(fixed: Image, moving: Image, chain: TransformChain, region: Image | None = None) -> ErrorMap:
    """Tell how far a transform may be from the truth, from what the images look like under it.

    Parameters
    ----------
    fixed, moving : Image
        Of any anatomy and contrast.
    chain : TransformChain
        Fixed to moving, found by whatever method.
    region : Image, optional
        Where something is to be said; the fixed image's foreground by default.

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.

    References
    ----------
    Sokooti et al., "Quantitative error prediction of medical image registration using regression forests", Medical
    Image Analysis 2019, for learning the error from synthetic pairs.
    """
    model = load_error_model()
    clues = find_clues(fixed, moving, chain, region)
    values, unusual = model.predict(clues), model.unusual(clues)
    if unusual:
        values[..., 1] *= _WIDENED
    return ErrorMap(values, clues.grid, unusual)
