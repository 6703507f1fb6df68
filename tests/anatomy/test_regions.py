"""Regions by their names: those of the package, and those of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from regnet_itk.anatomy import regions
from regnet_itk.anatomy.lungs import body_mask, lung_mask
from regnet_itk.anatomy.regions import Scan, known_regions
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ParameterError


def chest() -> Image:
    """Tissue with two boxes of lung in it, and air around."""
    values = np.full((36, 40, 50), -1000.0, dtype=np.float32)
    values[:, 6:34, 5:45] = 40.0
    values[6:30, 12:28, 9:22] = values[6:30, 12:28, 28:41] = -800.0
    return Image(values, Grid((50, 40, 36), (6.0, 6.0, 6.0)))


def test_lungs_and_body_are_found_on_any_grid() -> None:
    image = chest()
    scan = Scan(image)
    coarse = image.grid.isotropic(9.0)
    for name, mask in (("lungs", lung_mask), ("body", body_mask)):
        np.testing.assert_array_equal(scan.find(name).array, mask(image).array)
        np.testing.assert_array_equal(scan.find(name, coarse).array, mask(image, coarse).array)
    assert 0 < scan.find("lungs").array.sum() < scan.find("body").array.sum()


def test_all_is_where_the_image_is() -> None:
    image = Image(np.zeros((4, 5, 6), dtype=np.float32), Grid((6, 5, 4)))
    assert Scan(image).find("all").array.all()
    larger = Grid((10, 5, 4), origin=(-2.0, 0.0, 0.0))
    found = Scan(image).find("all", larger).array
    assert found.dtype == bool
    np.testing.assert_array_equal(found.any(axis=(0, 1)), [False] * 2 + [True] * 6 + [False] * 2)


def test_an_unknown_region() -> None:
    with pytest.raises(ParameterError, match=r"'lung' is no region .*; did you mean 'lungs'"):
        Scan(chest()).find("lung")


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_packages: Callable) -> None:
    (tmp_path / "their_regions.py").write_text(
        "from regnet_itk.data.image import Image\n"
        "def bright(scan, grid):\n"
        "    return Image(scan.image.resampled(grid).array > 0, grid)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install_packages(regions.ENTRY_POINTS, bright="their_regions:bright", dim="their_regions:dim")


def test_another_package_s_finder_is_used(another_package: None) -> None:
    assert known_regions() == ("lungs", "body", "foreground", "all", "bright", "dim")
    image = chest()
    assert (Scan(image).find("bright").array == (image.array > 0)).mean() > 0.99  # resampling rounds a little
    with pytest.raises(ParameterError, match="'dim' of 'their_regions:dim' cannot be loaded: AttributeError"):
        Scan(image).find("dim")


def test_a_chest_without_lungs_is_told() -> None:
    image = Image(np.full((40, 40, 40), 40.0, dtype=np.float32), Grid((40, 40, 40), (3.0, 3.0, 3.0)))
    with pytest.raises(ImageError, match="no lung was found"):
        Scan(image).find("lungs")
