"""What becomes of a displacement field that a stage has found on the fixed image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet_itk.data.image import Image
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.resampling import resample_through
from regnet_itk.transforms.resampling_keys import make_resampling_parameters, result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.stages.base import ImagePair

_AIR = -1000.0
"""HU."""


def apply_found_field(
    u: DisplacementField,
    pair: ImagePair,
    initial: TransformChain,
    parameters: ParameterMap,
    background: float = _AIR,
    *,
    threads: int | None = None,
) -> tuple[TransformChain, Image | None]:
    """Return T(x) = T0(x + u(x)) and the moving image under it.

    Parameters
    ----------
    u : DisplacementField
        In mm, LPS, on the fixed side; its grid may be another than the image's.
    pair : ImagePair
    initial : TransformChain
        T0, the transform before the stage.
    parameters : ParameterMap
        Of the stage; says by elastix's keys how to resample (``FinalBSplineInterpolationOrder``,
        ``DefaultPixelValue``, ``ResultImagePixelType``, ``ResultImageFormat``) and whether at all
        (``WriteResultImage``).
    background : float
        Value outside the moving image where `parameters` names none.
    threads : int, optional
        That make the warped image; all by default.

    Returns
    -------
    chain : TransformChain
        The whole transform, with u as its innermost link.
    warped : Image or None
        On the grid of the fixed image; None if it is not wanted.

    Raises
    ------
    ParameterError
        If the pixel type does not exist.
    """
    grid = pair.fixed.grid
    order = parameters.get_int("FinalBSplineInterpolationOrder", 3)
    default = parameters.get_float("DefaultPixelValue", background)
    suffix = parameters.get_str("ResultImageFormat", "mha")
    pixel_type = result_pixel_type(parameters)
    resampling = make_resampling_parameters(grid, order, default, pixel_type, suffix)
    chain = initial.then(link_field(u, resampling))
    if not parameters.get_bool("WriteResultImage", True):
        return chain, None
    warped = resample_through(pair.moving, chain, grid, order, default, threads=threads)
    return chain, Image(cast_values(warped.array, pixel_type), grid)
