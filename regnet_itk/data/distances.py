"""Euclidean distances to a mask, by ITK's threaded transform: many times faster than others on large images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Triple
from regnet_itk.data.image import array_of


def distance_to(mask: npt.NDArray[np.bool_], spacing: Triple = (1.0, 1.0, 1.0)) -> npt.NDArray[np.float32]:
    """Return the distance of every voxel to the nearest one of a mask.

    Parameters
    ----------
    mask : bool array, shape (z, y, x)
        At least one voxel is true.
    spacing : tuple of float
        Of the voxels along x, y, z; the distances are in its unit.

    Returns
    -------
    ndarray, shape (z, y, x)
        Between the voxels' centres; 0 in the mask.

    References
    ----------
    Maurer, Qi and Raghavan, "A linear time algorithm for computing exact Euclidean distance transforms of binary images
    in arbitrary dimensions", IEEE TPAMI 2003.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing)
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    distances = array_of(signed)
    return np.maximum(distances, 0.0, out=distances)
