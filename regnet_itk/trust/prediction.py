"""The expected error of any transform, from what the images look like under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.networks.devices import limited_threads
from regnet_itk.stages.ignored import Ignored
from regnet_itk.trust.clues import find_clues
from regnet_itk.trust.error_map import ErrorMap
from regnet_itk.trust.error_model import load_error_model

if TYPE_CHECKING:
    from regnet_itk.data.image import Image
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.transforms.chain import TransformChain

_DIGITS = 3  # of a mm: more would be noise
_WIDENED = 1.5  # the radius, where the pair is unlike all that the model learnt from


def find_error_map(
    fixed: Image, moving: Image, chain: TransformChain, region: Image | None = None, *, threads: int | None = None,
    fixed_ignore: Image | None = None, moving_ignore: Image | None = None,
) -> ErrorMap:  # fmt: skip
    """Tell how far a transform may be from the truth, from what the images look like under it.

    Parameters
    ----------
    fixed, moving : Image
        Of any anatomy and contrast.
    chain : TransformChain
        Fixed to moving, found by whatever method.
    region : Image, optional
        Where something is to be said; the fixed image's foreground by default.
    threads : int, optional
        CPU threads; all by default.
    fixed_ignore, moving_ignore : Image, optional
        Masks of where the images have nothing to compare, so that nothing is said.

        .. versionadded:: 0.2

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.
    RegistrationError
        In a process that was forked from one in which Torch had worked.

    Examples
    --------
    >>> from regnet_itk import TransformChain, find_error_map, make_phantom
    >>> phantom = make_phantom(1, spacing=(5.0, 5.0, 5.0))
    >>> errors = find_error_map(phantom.fixed, phantom.moving, TransformChain())  # before any registration
    >>> errors.mean > 2.0
    True

    References
    ----------
    Sokooti et al., "Quantitative error prediction of medical image registration using regression forests", Medical
    Image Analysis 2019, for learning the error from synthetic pairs.
    """
    model = load_error_model()
    with limited_threads(threads):
        clues = find_clues(fixed, moving, chain, region, Ignored(fixed_ignore, moving_ignore))
        values, unusual = model.predict(clues), model.unusual(clues)
    if unusual:
        values[..., 1] *= _WIDENED
    return ErrorMap(np.round(values, _DIGITS), clues.grid, unusual)


def find_error_map_of(pair: ImagePair, chain: TransformChain, threads: int | None = None) -> ErrorMap:
    """Tell how far a transform of a pair may be from the truth, inside of its masks; see :func:`find_error_map`."""
    return find_error_map(
        pair.fixed, pair.moving, chain, pair.fixed_mask, threads=threads,
        fixed_ignore=pair.fixed_guides.ignore, moving_ignore=pair.moving_guides.ignore,
    )  # fmt: skip
