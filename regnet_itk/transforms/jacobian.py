"""The Jacobian of a whole chain on any grid: dT_i/dx_j in physical axes (LPS), as transformix writes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from regnet_itk.data.field import DisplacementField, jacobian_determinant
from regnet_itk.data.grid import Box, Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.sampler import determinant, fill_in_blocks, voxel_points


@dataclass(frozen=True)
class FoldingSummary:
    """What a map of Jacobian determinants says about folding and smoothness.

    Parameters
    ----------
    share_not_positive : float
        Share (0 to 1) of voxels with det J <= 0, where the transform folds.
    min, max : float
        Of the determinant.
    std_log : float
        Standard deviation of log(det J) over the voxels where det J > 0; NaN if there are none.
    voxels : int
        How many were looked at.
    """

    share_not_positive: float
    min: float
    max: float
    std_log: float
    voxels: int


def jacobian_matrices_on(chain: TransformChain, grid: Grid) -> npt.NDArray[np.float32]:
    """Return dT_i/dx_j at the voxels of `grid`, shape (z, y, x, 3, 3), the row i before the column j.

    Matrices and B-splines are differentiated exactly, displacement fields by central differences over one of their
    own voxels.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving, mm, LPS.
    grid : Grid
        In the fixed image.
    """
    sampler = chain.sampler()
    found = np.empty((*grid.shape, 3, 3), dtype=np.float32)

    def fill(box: Box, part: Grid) -> None:
        jacobian = sampler.map_with_jacobian(voxel_points(part))[1]
        found[box] = jacobian.permute(2, 0, 1).reshape(*part.shape, 3, 3).numpy()

    fill_in_blocks(fill, grid)
    return found


def jacobian_determinant_on(chain: TransformChain, grid: Grid) -> Image:
    """Return det(dT/dx) at the voxels of `grid`, float32; see `jacobian_matrices_on`.

    Below or at zero the transform folds; 1.1 is 10 % of growth from the fixed to the moving image.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> double = sitk.ScaleTransform(3, (2.0, 1.0, 1.0))
    >>> chain = regnet_itk.chain_from_sitk(double)
    >>> float(regnet_itk.jacobian_determinant_on(chain, regnet_itk.Grid(size=(4, 3, 2))).array.mean())
    2.0
    """
    only = chain.links[0].transform if len(chain.links) == 1 else None
    if isinstance(only, DisplacementField) and only.grid.is_close(grid, tolerance=1e-6):
        return Image(jacobian_determinant(only.vectors, grid, torch.get_num_threads()), grid)
    sampler = chain.sampler()
    found = np.empty(grid.shape, dtype=np.float32)

    def fill(box: Box, part: Grid) -> None:
        jacobian = sampler.map_with_jacobian(voxel_points(part))[1]
        found[box] = determinant(jacobian).reshape(part.shape).numpy()

    fill_in_blocks(fill, grid)
    return Image(found, grid)


def summarise_folding(determinants: Image, mask: Image | None = None) -> FoldingSummary:
    """Summarise a map of determinants, inside a mask if there is one.

    Parameters
    ----------
    determinants : Image
        det J.
    mask : Image, optional
        Voxels other than 0 count; on any grid.

    Raises
    ------
    ImageError
        If no voxel lies inside the mask.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> determinants = regnet_itk.jacobian_determinant_on(chain, regnet_itk.Grid(size=(4, 3, 2)))
    >>> regnet_itk.summarise_folding(determinants).share_not_positive
    0.0
    """
    values = determinants.array.ravel()
    if mask is not None:
        values = determinants.array[mask.resampled(determinants.grid, order=0).array != 0]
        if not values.size:
            raise ImageError("no voxel of the Jacobian lies inside the mask; give a mask of the fixed image")
    positive = values[values > 0]
    return FoldingSummary(
        1.0 - len(positive) / len(values), float(values.min()), float(values.max()),
        float(np.log(positive, dtype=np.float64).std()) if len(positive) else float("nan"), len(values),
    )  # fmt: skip
