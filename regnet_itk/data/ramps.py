"""Smooth ways from 0 to 1."""

from __future__ import annotations

import numpy as np

from regnet_itk.data.grid import FloatArray


def smooth_step(t: FloatArray) -> FloatArray:
    """Return 0 below 0, 1 above 1, and a smooth ascent between."""
    t = np.clip(t, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))
