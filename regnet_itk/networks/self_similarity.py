"""MIND-SSC: what an image looks like around a voxel, independent of its intensities' scale.

The self-similarity context of Heinrich et al., MICCAI 2013: how alike the six neighbours of a voxel are, in twelve
pairs. Two scans can be compared by it although density, contrast agent or reconstruction differ.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.grid import cut_slabs

CHANNELS = 12
"""Pairs of neighbours that are compared."""

REACH = 3
"""Voxels along each axis that a feature depends on, on either side."""

_DILATION = REACH - 1
_SLAB_VOXELS = 400_000  # worked on at once: what a processor's cache holds
_LEAST_VARIANCE = 1e-4
"""(12 HU)^2 at a scale of 1200 HU: below, the differences are noise, and all of them count as alike."""


def mind_features(image: Tensor) -> Tensor:
    """Return the self-similarity context of every voxel: patches of 3x3x3 voxels, two voxels from it, compared.

    Parameters
    ----------
    image : Tensor, shape (z, y, x)
        Intensities, scaled to about 0 to 1. Beyond the border it continues with the border's values.

    Returns
    -------
    Tensor, shape (z, y, x, 12)
        From 0 (unlike) to 1.
    """
    padded = functional.pad(image[None, None], [REACH] * 6, mode="replicate")[0, 0]
    found = torch.empty(*image.shape, CHANNELS, device=image.device)
    for slab in cut_slabs(image.shape, _SLAB_VOXELS):
        found[slab] = _features_inside(padded[slab.start : slab.stop + 2 * REACH])
    return found


Step = tuple[int, int, int]


def _comparisons() -> tuple[list[Step], list[tuple[int, int, int, int]]]:
    """Return the steps between the patches that are compared, and of each channel the step and the first patch's place.

    The neighbours +e_a, sign e_b differ by the same step as -sign e_b, -e_a, one step back.
    """
    steps: list[Step] = []
    places: list[tuple[int, int, int, int]] = []
    for a, b in combinations(range(3), 2):
        for sign in (1, -1):
            step = [0, 0, 0]
            step[a], step[b] = -_DILATION, sign * _DILATION
            for axis, side in ((a, 1), (b, -sign)):
                place = [0, 0, 0]
                place[axis] = side * _DILATION
                places.append((len(steps), place[0], place[1], place[2]))
            steps.append((step[0], step[1], step[2]))
    return steps, places


def _features_inside(padded: Tensor) -> Tensor:
    """Return the features of the voxels at least `REACH` voxels inside an array."""
    size = [n - 2 * REACH for n in padded.shape]
    steps, places = _comparisons()
    changes = [_patch_difference(padded, step) for step in steps]
    unlike = []
    for number, *place in places:
        low = [_DILATION + p + min(s, 0) for p, s in zip(place, steps[number], strict=True)]
        unlike.append(changes[number][tuple(slice(at, at + n) for at, n in zip(low, size, strict=True))])
    distances = torch.stack(unlike)
    distances -= distances.amin(dim=0)
    variance = distances.mean(dim=0).clamp_(min=_LEAST_VARIANCE)
    return distances.div_(-variance).exp_().movedim(0, -1)


def _patch_difference(padded: Tensor, step: Step) -> Tensor:
    """Return the mean squared difference of the patches at x and at x + step, where both lie inside."""
    here, there = padded, padded
    for axis, s in enumerate(step):
        length = padded.shape[axis] - abs(s)
        here, there = here.narrow(axis, max(-s, 0), length), there.narrow(axis, max(s, 0), length)
    found = (here - there).square()
    for axis in range(3):
        length = found.shape[axis] - 2
        found = found.narrow(axis, 0, length) + found.narrow(axis, 1, length) + found.narrow(axis, 2, length)
    return found / 27
