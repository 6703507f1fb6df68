"""The pixel types of elastix's files, by both of their names."""

from __future__ import annotations

from typing import Any

import numpy as np

PIXEL_TYPES: dict[str, Any] = {
    "char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned int": np.uint32,
    "long": np.int64,
    "unsigned long": np.uint64,
    "float": np.float32,
    "double": np.float64,
}
PIXEL_TYPES |= {np.dtype(dtype).name: dtype for dtype in PIXEL_TYPES.values()}  # "int16" .., as of elastix 5.3
