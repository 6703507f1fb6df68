"""Values become of a pixel type without wrapping around, and types are found by both of their names."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_itk.data.pixel_types import PIXEL_TYPES, cast_values, check_pixel_type, pixel_type_of
from regnet_itk.errors import ParameterError


@pytest.mark.parametrize(
    ("pixel_type", "expected"),
    [("short", [-1000, -0, 1, 32767]), ("unsigned char", [0, 0, 1, 255]), ("float", [-1000.9, -0.6, 1.9, 9e9])],
)
def test_decimals_are_cut_as_elastix_does_and_nothing_wraps(pixel_type, expected):
    found = cast_values(np.array([-1000.9, -0.6, 1.9, 9e9], np.float32), pixel_type)
    assert found.dtype == PIXEL_TYPES[pixel_type]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("values", [np.float32, np.float64])
@pytest.mark.parametrize("pixel_type", [name for name, dtype in PIXEL_TYPES.items() if np.dtype(dtype).kind != "f"])
def test_the_smallest_and_largest_numbers_of_every_type(pixel_type, values):
    limits = np.iinfo(PIXEL_TYPES[pixel_type])
    below = np.nextafter(values(limits.max), values(0))
    found = cast_values(np.array([-1e30, limits.min, below, limits.max, 1e30], values), pixel_type)
    assert found.tolist() == [limits.min, limits.min, int(below), limits.max, limits.max]


def test_whole_numbers_become_others():
    assert cast_values(np.array([-3, 7, 300], np.int16), "uint8").tolist() == [0, 7, 255]


def test_names():
    assert [pixel_type_of(np.zeros(1, dtype)) for dtype in (np.int16, np.uint8, bool)] == [
        "short", "unsigned char", "float",
    ]  # fmt: skip
    assert PIXEL_TYPES["int16"] is PIXEL_TYPES["short"]
    assert check_pixel_type("float32") == "float32"
    with pytest.raises(ParameterError, match="there is no pixel type 'shorts'; did you mean 'short'"):
        cast_values(np.zeros(1), "shorts")
    with pytest.raises(ParameterError, match="known are char, unsigned char"):
        check_pixel_type("xyz")
