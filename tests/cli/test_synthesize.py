"""The command `synthesize`: pairs whose displacement is right by SimpleITK's judgement, on turned anisotropic grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.pairs import read_pairs

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (15, -25, 35), degrees=True).as_matrix()))
GRID = Grid((40, 36, 24), (3.1, 3.6, 5.2), (-40.0, 15.0, 130.0), TURNED)


def write_texture(path: Path, seed: int = 0, mean: float = -400.0) -> Path:
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=GRID.shape), 1.5)
    write_image(Image((mean + 200 * rough / rough.std()).astype(np.int16), GRID), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold input.nii.gz, mask.mha and, in out/, the six pairs made of them."""
    folder = tmp_path_factory.mktemp("synthesize")
    write_texture(folder / "input.nii.gz")
    mask = np.zeros(GRID.shape, dtype=np.uint8)
    mask[5:-5, 8:-8, 8:-8] = 3
    write_image(Image(mask, GRID), folder / "mask.mha")
    arguments = ("--mask", folder / "mask.mha", "-out", folder / "out", "--seed", 7)
    assert call("synthesize", folder / "input.nii.gz", *arguments) == 0
    return folder


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(float)


def warped(image: sitk.Image, field: Path, interpolator: int = sitk.sitkBSpline3) -> np.ndarray:
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    found = sitk.Resample(image, image, transform, interpolator, -1000.0, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(found).astype(float)


INSIDE = (slice(4, -4), slice(5, -5), slice(5, -5))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_fixed_image_is_the_input_under_the_written_field_with_noise_of_5(made: Path, number: int) -> None:
    start = made / "out" / f"input_{number}"
    source = sitk.ReadImage(str(made / "input.nii.gz"), sitk.sitkFloat32)
    noise = read(Path(f"{start}_fixed.mha")) - warped(source, Path(f"{start}_displacement.mha"))
    assert noise[INSIDE].std() == pytest.approx(5.0, rel=0.03)
    assert abs(noise[INSIDE].mean()) < 0.2
    own = read(Path(f"{start}_moving.mha")) - sitk.GetArrayFromImage(source)
    assert own.std() == pytest.approx(5.0, rel=0.03)
    assert abs(np.corrcoef(noise[INSIDE].ravel(), own[INSIDE].ravel())[0, 1]) < 0.05
    # the other way round it is not
    inverted = -sitk.GetArrayFromImage(sitk.ReadImage(f"{start}_displacement.mha"))
    wrong = sitk.GetImageFromArray(inverted, isVector=True)
    wrong.CopyInformation(source)
    sitk.WriteImage(wrong, str(made / "wrong.mha"))
    assert (read(Path(f"{start}_fixed.mha")) - warped(source, made / "wrong.mha"))[INSIDE].std() > 20


def test_pairs_4_to_6_are_of_a_new_moving_image(made: Path) -> None:
    source = read(made / "input.nii.gz")
    moving = [read(made / "out" / f"input_{k}_moving.mha") for k in range(1, 7)]
    assert (moving[3] - source)[INSIDE].std() > 20
    for k in (4, 5, 6):
        start = made / "out" / f"input_{k}"
        assert (moving[k - 1] - moving[3]).std() < 7.2 + 0.2  # each has its own noise
        image = sitk.ReadImage(f"{start}_moving.mha")
        noise = (read(Path(f"{start}_fixed.mha")) - warped(image, Path(f"{start}_displacement.mha")))[INSIDE]
        assert 5.0 < noise.std() < 9.0


def test_fields_are_on_the_image_and_as_large_as_the_paper_says(made: Path) -> None:
    differences = []
    for k in range(1, 7):
        field = read_displacement_field(made / "out" / f"input_{k}_displacement.mha")
        assert field.grid.is_close(GRID)
        assert field.vectors.dtype == np.float32
        along = np.abs(field.vectors @ GRID.direction_matrix)
        assert 6.0 < along.max() <= 8.001
        slopes = np.gradient(field.vectors[..., 0], *GRID.spacing[::-1])
        differences.append(float(np.abs(slopes).max()))
        assert field.jacobian_determinant().min() > 0.2
    assert differences[0] < differences[2]
    assert differences[3] < differences[5]
    assert len({read(made / "out" / f"input_{k}_displacement.mha").tobytes() for k in range(1, 7)}) == 6


def test_the_mask_follows_the_fixed_image(made: Path) -> None:
    mask = sitk.ReadImage(str(made / "mask.mha")) > 0
    out = made / "out"
    expected = warped(mask, out / "input_2_displacement.mha", sitk.sitkNearestNeighbor) > 0
    found = read(out / "input_2_fixed_mask.mha")
    assert set(np.unique(found)) == {0, 1}
    assert (found != expected).mean() < 0.001
    assert (found != sitk.GetArrayFromImage(mask)).mean() > 0.01


def test_the_list_of_pairs_is_read_by_compare_and_moves_along(made: Path) -> None:
    (made / "out").rename(made / "elsewhere")
    try:
        pairs = read_pairs(made / "elsewhere" / "pairs.csv")
    finally:
        (made / "elsewhere").rename(made / "out")
    assert [pair.name for pair in pairs] == [f"input_{k}" for k in range(1, 7)]
    assert [pair.group for pair in pairs] == ["low", "medium", "high"] * 2
    assert all(pair.displacement is not None and pair.fixed_mask is not None for pair in pairs)
    text = (made / "out" / "pairs.csv").read_text(encoding="utf-8")
    assert str(made) not in text
    assert ".part" not in text
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(made / "out" / "input_displacements.png")))
    assert picture.std() > 20
    assert sorted(p.name for p in (made / "out").iterdir() if p.name.startswith(".")) == []


def test_the_seed_and_the_name_decide_the_voxels(made: Path, tmp_path: Path) -> None:
    other = write_texture(tmp_path / "a_other.mha", seed=1)
    arguments = ("--mask", made / "mask.mha") * 2
    images = (other, made / "input.nii.gz")
    assert call("synthesize", *images, *arguments, "-out", tmp_path / "b", "--seed", 7, "--fields", 2) == 0
    for role in ("fixed", "moving", "displacement", "fixed_mask"):
        for k in (1, 2):
            np.testing.assert_array_equal(
                read(tmp_path / "b" / f"input_{k}_{role}.mha"), read(made / "out" / f"input_{k}_{role}.mha")
            )
    assert len(read_pairs(tmp_path / "b" / "pairs.csv")) == 4
    assert not (tmp_path / "b" / "input_3_fixed.mha").exists()
    assert call("synthesize", made / "input.nii.gz", "-out", tmp_path / "c", "--seed", 8, "--fields", 1) == 0
    name = "input_1_displacement.mha"
    assert np.abs(read(tmp_path / "c" / name) - read(made / "out" / name)).max() > 1


def test_lungs_are_found_or_it_is_said_that_there_are_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom(5, spacing=(4.5, 4.5, 5.0), extent=(200.0, 180.0, 160.0))
    write_image(phantom.fixed, tmp_path / "chest.mha")
    assert call("synthesize", tmp_path / "chest.mha", "-out", tmp_path / "out", "--fields", 1) == 0
    assert "warning" not in capfd.readouterr().err
    found, true = read_image(tmp_path / "out" / "chest_1_fixed_mask.mha").array, phantom.fixed_mask.array > 0
    assert 2 * (found.astype(bool) & true).sum() / (found.sum() + true.sum()) > 0.6  # deformed by up to 8 mm
    write_texture(tmp_path / "none.mha", mean=1000.0)
    assert call("synthesize", tmp_path / "none.mha", "-out", tmp_path / "without", "--fields", 1) == 0
    assert "no lungs were found" in capfd.readouterr().err
    (pair,) = read_pairs(tmp_path / "without" / "pairs.csv")
    assert pair.fixed_mask is None


def test_errors_are_one_line_and_leave_nothing(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, out = made / "input.nii.gz", tmp_path / "out"
    sitk.WriteImage(sitk.Image([30, 30], sitk.sitkInt16), str(tmp_path / "flat.mha"))
    thin = Grid((20, 20, 3))
    write_image(Image(np.random.default_rng(0).normal(size=thin.shape), thin), tmp_path / "thin.mha")
    (tmp_path / "b").mkdir()
    write_texture(tmp_path / "b" / "input.mha")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((image, tmp_path / "flat.mha"), 1, "2 dimensions"),
        ((image, tmp_path / "thin.mha"), 1, "too few voxels"),
        ((image, tmp_path / "missing.mha"), 1, "does not exist"),
        ((image, tmp_path / "b" / "input.mha"), 1, "a name of its own"),
        ((image, "--mask", tmp_path / "thin.mha"), 1, "another grid"),
        ((image, "--mask", made / "mask.mha", "--mask", made / "mask.mha"), 2, "2 --mask for 1 images"),
        ((image, "--sed", 3), 2, "--seed"),
        ((image, "--fields", 7), 2, "--fields"),
    ]
    for arguments, status, message in cases:
        extra = ("--fields", 1) if "--fields" not in arguments else ()
        assert call("synthesize", *arguments, *extra, "-out", out) == status
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("regnet-itk: error")]
        assert len(error) == 1
        assert message in error[0]
        assert not out.exists()
    assert call("synthesize", image, "-out", made / "mask.mha") == 1
    assert "is a file" in capfd.readouterr().err
