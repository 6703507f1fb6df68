"""What is unlike the images that a model was trained on is said, in the log and in registration.json, and only then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from listening import Heard
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk import register
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import ModelDescription, save_model
from regnet_itk.networks.suitability import capture_range_reached
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.parameters import ParameterMap

DIRECTION = Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()
TURNED = tuple(map(tuple, DIRECTION))
GRID = Grid((26, 24, 20), (2.0, 2.4, 3.0), (5.0, -7.0, 11.0), TURNED)
CT_MODEL = ModelDescription("known", "coarse_to_fine", 2.0, CHEST_CT, 25.0)


def chest(grid: Grid = GRID) -> Image:
    """Return something with a half of lung and a half of tissue, in HU."""
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 1.2)
    half = np.where(np.arange(grid.shape[2]) < grid.shape[2] // 2, -800.0, 40.0)
    return Image((half + 60 * rough / rough.std()).astype(np.float32), grid)


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Image:
    image = chest()
    return Image(change(image.array).astype(np.float32), image.grid)


def always(length: float) -> CoarseToFineRegNet:
    """Return a network that always says `length` mm along the image's first axis."""
    network = CoarseToFineRegNet().eval()
    with torch.no_grad():
        for decoder in network.decoder:
            decoder.head.weight.zero_()
            decoder.head.bias.zero_()
        network.decoder[0].head.bias[0] = length / network.voxel_size
    return network


def warnings(
    folder: Path,
    fixed: Image,
    moving: Image,
    description: ModelDescription = CT_MODEL,
    length: float = 1.0,
    mask: Image | None = None,
    **keys: object,
) -> list[str]:
    """Register; check that registration.json holds the warnings of the log, and return them.

    The network moves images by what it always says: that this makes them less alike is not what is tested here.
    """
    save_model(always(length), description, folder / "known.safetensors")
    values = {"Registration": "RegNetRegistration", "RegNetModel": "known.safetensors", "RegNetRegion": "all"} | keys
    stage = ParameterMap({key: (str(value),) for key, value in values.items()}, str(folder / "p.txt"))
    heard = Heard()
    result = register(fixed, moving, [stage], fixed_mask=mask, device="cpu", threads=1, events=heard)
    result.write(folder / "out")
    record = json.loads((folder / "out" / "registration.json").read_text(encoding="utf-8"))
    start = "RegNet known: "
    found = [line.removeprefix(start) for line in heard.warnings if line.startswith(start)]
    assert len(found) == len(heard.warnings)
    assert record["stages"][0].get("warnings", "") == "; ".join(found)
    return [line for line in found if not line.startswith(("the images are less alike", "the images have little"))]


def test_nothing_is_said_of_ct(tmp_path: Path) -> None:
    assert warnings(tmp_path, chest(), chest()) == []
    padded = changed(lambda values: np.where(values < -900, -3024, values))  # outside of the field of view
    assert warnings(tmp_path, padded, padded) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: values + 1024, "lacks the offset of -1024 HU"),
        (lambda values: (values + 1000) / 1200, "perhaps it is not CT"),
        (lambda values: values - 1024, "not in Hounsfield units"),
    ],
    ids=["no offset", "0 to 1", "offset twice"],
)
def test_other_intensities(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], says: str) -> None:
    strange = changed(change)
    for fixed, moving, roles in (
        (strange, chest(), ["fixed"]),
        (chest(), strange, ["moving"]),
        (strange, strange, ["fixed", "moving"]),
    ):
        found = warnings(tmp_path, fixed, moving)
        assert len(found) == len(roles)
        for line, role in zip(found, roles, strict=True):
            assert says in line
            assert f"{role} image" in line


def test_a_moving_image_that_ends_inside_the_region_is_judged_by_its_own_values(tmp_path: Path) -> None:
    part = changed(lambda values: values + 1024)
    part = Image(part.array[:, :, 8:], part.grid.crop((8, 0, 0), (18, 24, 20)))
    (line,) = warnings(tmp_path, chest(), part)
    assert "moving image" in line


def test_a_model_that_was_not_trained_on_air_needs_none(tmp_path: Path) -> None:
    other = dataclasses.replace(CT_MODEL, world=dataclasses.replace(CHEST_CT, intensity_range=(0.0, 2000.0)))
    shifted = changed(lambda values: values + 1024)
    assert warnings(tmp_path, shifted, shifted, other) == []


def test_only_the_region_counts(tmp_path: Path) -> None:
    tissue = np.zeros(GRID.shape, dtype=np.uint8)
    tissue[4:-4, 4:-4, 16:-4] = 1
    lung = np.ascontiguousarray(tissue[..., ::-1])
    for mask, expected in ((tissue, 2), (lung, 0)):
        found = warnings(tmp_path, chest(), chest(), mask=Image(mask, GRID), RegNetRegion="mask")
        assert sum("hardly a value below -500 HU" in line for line in found) == len(found) == expected


def test_coarse_voxels(tmp_path: Path) -> None:
    fine, coarse = (chest(Grid((26, 24, 12), (2.0, 2.4, z), GRID.origin, TURNED)) for z in (5.9, 6.1))
    assert warnings(tmp_path, fine, fine) == []
    (line,) = warnings(tmp_path, coarse, fine)
    assert line.startswith("the fixed image has voxels of 6.1 mm, the network works on 2 mm")
    (line,) = warnings(tmp_path, fine, coarse)
    assert line.startswith("the moving image")


def test_the_capture_range(tmp_path: Path) -> None:
    near = dataclasses.replace(CT_MODEL, capture_range=10.0)
    assert warnings(tmp_path, chest(), chest(), near, length=8.8) == []
    (line,) = warnings(tmp_path, chest(), chest(), near, length=9.2)
    assert "near the 10.0 mm that the model follows" in line
    assert "9.2 mm" in line
    assert "affine" in line
    (line,) = warnings(tmp_path, chest(), chest(), near, length=12.0)
    assert "past the 10.0 mm" in line
    short = np.full(100, 5.0)
    assert capture_range_reached(short, 12.0, near) is None  # a voxel led a little past it by instance optimisation
    assert "displacements reach 13.0 mm, far past the 10.0 mm" in (capture_range_reached(short, 13.0, near) or "")
    unknown = dataclasses.replace(CT_MODEL, capture_range=0.0)
    assert warnings(tmp_path, chest(), chest(), unknown, length=12.0) == []
