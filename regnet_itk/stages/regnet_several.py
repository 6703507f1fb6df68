"""One field from several: a network sees each pair of images, and where the fields differ, the better one counts.

A field is good where all the fixed images and the moving ones under it look alike: by their self-similarity contexts,
which can be compared between images of any contrast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image

_SMOOTHED_OVER = 10.0  # mm: weights that change faster would tear the field
_SHARPNESS = 4  # power of the disagreement; a field that is twice as wrong counts a sixteenth
_LEAST = 1e-3  # disagreement that nobody can tell from none


def weigh_fields(
    fields: Sequence[DisplacementField], pairs: Sequence[tuple[Image, Image]], intensity_range: tuple[float, float]
) -> DisplacementField:
    """Return the mean of several fields, weighed at every voxel by how well the images agree under each.

    Parameters
    ----------
    fields : sequence of DisplacementField
        mm, LPS, all on one grid.
    pairs : sequence of (Image, Image)
        Fixed and moving images on one grid, in the unit of a model's world; fixed(x) = moving(x + u(x)).
    intensity_range : tuple of float
        These values are told apart.
    """
    if len(fields) == 1:
        return fields[0]
    grid = fields[0].grid
    weights = np.stack([(_disagreement(u, pairs, intensity_range) + _LEAST) ** -_SHARPNESS for u in fields])
    weights /= weights.sum(axis=0)
    vectors = sum(w[..., None] * u.vectors for w, u in zip(weights, fields, strict=True))
    return DisplacementField(np.asarray(vectors, dtype=np.float32), grid)


def _disagreement(
    u: DisplacementField, pairs: Sequence[tuple[Image, Image]], intensity_range: tuple[float, float]
) -> FloatArray:
    """Return how unlike the images are under a field, on its grid: the mean over all pairs, smooth."""
    import torch

    from regnet_itk.networks.self_similarity import mind_features

    low, high = intensity_range

    def features(image: Image) -> torch.Tensor:
        values = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
        return mind_features((values.clamp(low, high) - low) / (high - low))

    total = np.zeros(pairs[0][0].grid.shape, dtype=np.float32)
    for fixed, moving in pairs:
        warped = moving.resampled(fixed.grid, u.to_sitk_transform(), default=low)
        total += (features(fixed) - features(warped)).square_().mean(dim=-1).numpy()
    grid = pairs[0][0].grid
    smooth = ndimage.gaussian_filter(total, [_SMOOTHED_OVER / s for s in reversed(grid.spacing)], mode="nearest")
    return Image(smooth / len(pairs), grid).resampled(u.grid, default=float(smooth.max())).array
