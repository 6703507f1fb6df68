"""The loops of the self-similarity context, compiled by numba when they are first used and kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

from regnet_itk.compiling import compiled, on_torch_threads


def run_distances(
    padded: Tensor,
    steps: list[tuple[int, int, int]],
    places: list[tuple[int, int, int, int]],
    least: float,
    found: Tensor,
) -> None:
    """Fill `found` (z, y, x, channel) with the distances of all pairs of neighbours over their variance, negative.

    Parameters
    ----------
    padded : Tensor, shape (z + 6, y + 6, x + 6)
        float32, contiguous.
    steps : list of (dz, dy, dx)
        From one patch to the one that it is compared with.
    places : list of (step, dz, dy, dx)
        Of each channel: which step, and where its patch lies, seen from the voxel: at most two
        voxels away.
    least : float
        Smallest variance.
    found : Tensor, shape (z, y, x, channel)
        float32, contiguous.
    """
    image, out = padded.numpy(), found.numpy()
    size = [n - 2 for n in image.shape]
    differences = np.empty((len(steps), *size), dtype=np.float32)
    with on_torch_threads():
        _compare(image, np.array(steps, dtype=np.int64), differences)
        _combine(differences, np.array(places, dtype=np.int64), np.float32(least), out)


@compiled
def _compare(image: Any, steps: Any, differences: Any) -> None:  # pragma: no cover - compiled
    """Fill in the mean squared differences of patches of 3x3x3 voxels, the first one's middle at index + 1."""
    nz, ny, nx = differences.shape[1:]
    wide = image.shape[2]
    for z in prange(nz):
        row = np.empty(wide, dtype=np.float32)
        for y in range(ny):
            for k in range(steps.shape[0]):
                sz, sy, sx = steps[k, 0], steps[k, 1], steps[k, 2]
                # no channel asks for what would reach beyond the padded image
                if z + sz < 0 or z + sz + 2 >= image.shape[0] or y + sy < 0 or y + sy + 2 >= image.shape[1]:
                    continue
                row[:] = 0.0
                first, end = max(0, -sx), min(wide, wide - sx)
                for dz in range(3):
                    for dy in range(3):
                        here, there = image[z + dz, y + dy], image[z + dz + sz, y + dy + sy]
                        for x in range(first, end):
                            difference = here[x] - there[x + sx]
                            row[x] += difference * difference
                found = differences[k, z, y]
                for x in range(nx):
                    found[x] = (row[x] + row[x + 1] + row[x + 2]) / np.float32(27.0)


@compiled
def _combine(differences: Any, places: Any, least: Any, found: Any) -> None:  # pragma: no cover - compiled
    """Choose each channel's difference, take the smallest one of the voxel away, and divide by minus their mean."""
    nz, ny, nx, channels = found.shape
    for z in prange(nz):
        rows = np.empty((channels, nx), dtype=np.float32)
        smallest, mean = np.empty(nx, dtype=np.float32), np.empty(nx, dtype=np.float32)
        for y in range(ny):
            smallest[:] = np.inf
            mean[:] = 0.0
            for c in range(channels):
                k, dx = places[c, 0], places[c, 3] + 2
                there, row = differences[k, z + places[c, 1] + 2, y + places[c, 2] + 2], rows[c]
                for x in range(nx):
                    value = there[x + dx]
                    row[x] = value
                    smallest[x] = min(smallest[x], value)
                    mean[x] += value
            for x in range(nx):
                mean[x] = np.float32(-1.0) / max(mean[x] / np.float32(channels) - smallest[x], least)
            for x in range(nx):
                for c in range(channels):
                    found[z, y, x, c] = (rows[c, x] - smallest[x]) * mean[x]
