"""Images and masks: exchange with ITK and SimpleITK, files, and what no registration can use."""

from __future__ import annotations

import subprocess

import itk
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, as_image, bounding_box, check_mask, check_registrable, grid_of, place
from regnet_itk.data.image_files import read_grid, read_image, write_image
from regnet_itk.errors import ImageError, OutputError

TURNED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
GRID = Grid((11, 9, 8), (1.5, 2.0, 3.0), (-40.0, 15.0, 130.0), TURNED)
SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64)


@pytest.fixture(scope="module")
def image():
    return Image(np.random.default_rng(0).integers(-1000, 1000, GRID.shape).astype(np.int16), GRID)


def write_dicom(image, folder, series="1.2.3", first=0):
    """Write a CT series as scanners do, a file a slice."""
    folder.mkdir(exist_ok=True)
    whole = image.to_sitk()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(whole.GetDirection(), (3, 3))
    for z in range(whole.GetDepth()):
        part = whole[:, :, z]
        position = whole.TransformIndexToPhysicalPoint((0, 0, z))
        tags = {
            "0008|0060": "CT",
            "0020|000e": series,
            "0020|000d": "1.2",
            "0008|0018": f"{series}.{first + z + 1}",
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(map(str, [*direction[:, 0], *direction[:, 1]])),
            "0020|0013": str(z),
            "0018|0050": str(whole.GetSpacing()[2]),
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{first + z:03}.dcm"))
        writer.Execute(part)


# Exchange


@pytest.mark.parametrize("dtype", [*TYPES, bool, np.float16, np.dtype(">i2"), np.dtype(">f8")])
def test_there_and_back(dtype, image):
    given = Image(np.abs(image.array).astype(dtype), GRID)
    for other in (given.to_sitk(), given.to_itk()):
        back = as_image(other)
        np.testing.assert_array_equal(back.array, given.array)
        assert back.grid.is_close(GRID, 1e-9)
    assert as_image(given) is given
    assert as_image(given.array, GRID).grid is GRID


def test_itk_and_simpleitk_find_the_same_value_at_a_point(image):
    index = (7, 2, 5)
    point = GRID.index_to_point(index).tolist()
    ours, theirs = image.to_itk(), image.to_sitk()
    assert tuple(ours.TransformPhysicalPointToIndex(point)) == index
    assert ours.GetPixel(index) == theirs[index] == image.array[index[::-1]]


def test_an_itk_image_whose_index_does_not_start_at_zero(image):
    start, size = (2, 3, 1), (5, 4, 6)
    region = itk.ImageRegion[3]()
    region.SetIndex(start)
    region.SetSize(size)
    part = itk.region_of_interest_image_filter(image.to_itk(), region_of_interest=region)
    cut = itk.extract_image_filter(image.to_itk(), extraction_region=region, direction_collapse_to_strategy=1)
    assert tuple(cut.GetLargestPossibleRegion().GetIndex()) == start
    for found in (as_image(part), as_image(cut)):
        assert found.grid.is_close(GRID.crop(start, size), 1e-6)
        np.testing.assert_array_equal(found.array, image.array[1:7, 3:7, 2:7])
    assert grid_of(cut).is_close(GRID.crop(start, size), 1e-6)


def test_an_itk_filters_output_that_was_not_updated_yet(image):
    cast = itk.CastImageFilter[itk.Image[itk.SS, 3], itk.Image[itk.F, 3]].New(image.to_itk())
    np.testing.assert_array_equal(as_image(cast.GetOutput()).array, image.array)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (sitk.Image([4, 4], sitk.sitkInt16), "2 dimensions"),
        (itk.image_from_array(np.zeros((4, 4), np.float32)), "2 dimensions"),
        (sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), "3 components"),
        (itk.image_from_array(np.zeros((4, 4, 4, 3), np.float32), is_vector=True), "3 components"),
        (np.zeros((4, 4, 4)), "needs its grid"),
        ("image.mha", "not str"),
    ],
)
def test_what_is_no_image(given, message):
    with pytest.raises(ImageError, match=message):
        as_image(given)


def test_an_array_must_fit_its_grid(image):
    with pytest.raises(ImageError, match=r"shape \(z, y, x\) = .* does not fit a grid of size"):
        Image(image.array.transpose(2, 1, 0), GRID)


# Resampling


@pytest.mark.parametrize("order", range(6))
def test_resampling_is_itks(order):
    smooth = np.add.outer(np.add.outer(np.cos(np.arange(12) / 2), np.sin(np.arange(13) / 3)), np.cos(np.arange(14)))
    grid = Grid((14, 13, 12), (1.5, 2.0, 3.0), (-40.0, 15.0, 130.0), TURNED)
    source = Image((1000 * smooth).astype(np.float64), grid)
    target = Grid((9, 8, 7), (1.1, 1.7, 2.1), tuple(grid.index_to_point((3.2, 3.1, 3.4))), np.eye(3))
    move = sitk.TranslationTransform(3, (0.7, -1.1, 0.4))
    found = source.resampled(target, move, order, default=-5.0)
    kind = type(source.to_itk())
    if order > 1:
        judge = itk.BSplineInterpolateImageFunction[kind, itk.D, itk.D].New(spline_order=order)
    else:
        judge = (itk.NearestNeighborInterpolateImageFunction, itk.LinearInterpolateImageFunction)[order][
            kind, itk.D
        ].New()
    judge.SetInputImage(source.to_itk())
    points = target.points() + np.array([0.7, -1.1, 0.4])
    inside = grid.contains(points)
    assert 0.2 < inside.mean() < 1
    expected = [judge.Evaluate(point) for point in points[inside].tolist()]
    np.testing.assert_allclose(found.array[inside], expected, atol=0.05)
    assert (found.array[~inside] == -5.0).all()
    assert found.array.dtype == np.float32


def test_an_order_that_does_not_exist(image):
    with pytest.raises(ImageError, match="orders 0 to 5, not 6"):
        image.resampled(GRID, order=6)


# Files


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_and_read_back(suffix, dtype, image, tmp_path):
    given = Image(np.abs(image.array).astype(dtype), GRID)
    write_image(given, tmp_path / f"image{suffix}")
    again = read_image(tmp_path / f"image{suffix}")
    np.testing.assert_array_equal(again.array, given.array)
    assert again.array.dtype == dtype
    assert again.grid.is_close(GRID, 1e-4)
    assert not list(tmp_path.glob(".part*"))


def test_masks_may_be_boolean(image, tmp_path):
    write_image(Image(image.array > 0, GRID), tmp_path / "mask.nrrd")
    np.testing.assert_array_equal(read_image(tmp_path / "mask.nrrd").array, image.array > 0)


def test_a_dicom_folder(image, tmp_path):
    write_dicom(image, tmp_path / "ct")
    found = read_image(tmp_path / "ct")
    np.testing.assert_array_equal(found.array, image.array)
    assert found.grid.is_close(GRID, 1e-3)


def test_dicom_folders_that_are_unclear(image, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="without a DICOM series"):
        read_image(tmp_path / "empty", "moving image")
    write_dicom(image, tmp_path / "two")
    write_dicom(image, tmp_path / "two", "1.2.4", first=100)
    with pytest.raises(ImageError, match="2 DICOM series"):
        read_image(tmp_path / "two")
    write_dicom(image, tmp_path / "gap")
    (tmp_path / "gap" / "003.dcm").unlink()
    with pytest.raises(ImageError, match=r"3\.00 to 6\.00 mm apart: one is missing"):
        read_image(tmp_path / "gap")


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off(suffix, compress, image, tmp_path, capfd):
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image.to_sitk(), str(path), useCompression=compress)
    data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = data.read_bytes()
    for share in (0.3, 0.9):
        data.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError, match=r"fixed image '.*' (is cut off|cannot be read)") as caught:
            read_image(path, "fixed image")
        assert "\n" not in str(caught.value)
        assert capfd.readouterr().err == ""
    data.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).array, image.array)


def test_a_gzip_file_of_several_pieces(image, tmp_path):
    import gzip

    write_image(image, tmp_path / "image.nii")
    content = (tmp_path / "image.nii").read_bytes()
    pieces = [gzip.compress(content[i : i + 500]) for i in range(0, len(content), 500)]
    (tmp_path / "image.nii.gz").write_bytes(b"".join(pieces) + gzip.compress(b""))
    np.testing.assert_array_equal(read_image(tmp_path / "image.nii.gz").array, image.array)
    (tmp_path / "image.nii.gz").write_bytes(b"".join(pieces[:-2]))
    with pytest.raises(ImageError, match="is cut off"):
        read_image(tmp_path / "image.nii.gz")


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(ImageError, match=r"fixed image '.*none\.mha' does not exist"):
        read_image(tmp_path / "none.mha", "fixed image")
    for name in ("text.mha", "text.nii", "text.nii.gz", "text.nrrd", "text.unknown"):
        (tmp_path / name).write_text("no image")
        with pytest.raises(ImageError, match=f"'.*{name}' cannot be read") as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    sitk.WriteImage(sitk.Image([8, 8], sitk.sitkInt16), str(tmp_path / "flat.mha"))
    with pytest.raises(ImageError, match="has 2 dimensions"):
        read_image(tmp_path / "flat.mha")
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorFloat32), str(tmp_path / "vectors.nrrd"))
    with pytest.raises(ImageError, match="3 components a voxel"):
        read_image(tmp_path / "vectors.nrrd")


def test_where_nothing_can_be_written(image, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_image(image, tmp_path / "none" / "image.mha")
    with pytest.raises(OutputError, match="cannot write"):
        write_image(image, tmp_path / "image.unknown")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk(suffix, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only the administrator can make a small disk")
    try:
        noise = Image(np.random.default_rng(0).integers(-1000, 1000, (40, 60, 80)).astype(np.int16), Grid((80, 60, 40)))
        with pytest.raises(OutputError, match=f"cannot write '.*/image{suffix}'"):
            write_image(noise, tmp_path / f"image{suffix}")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False, capture_output=True)


# What no registration can use


def test_images_that_cannot_be_registered(image):
    check_registrable(image, "fixed image")
    spoilt = image.array.astype(np.float32)
    spoilt[0, 0, :2] = np.nan, np.inf
    for array, message in (
        (spoilt, "fixed image has 2 voxels that are NaN or infinite"),
        (np.full(GRID.shape, 3), r"fixed image is constant \(every voxel is 3\)"),
        (image.array.astype(complex), "values of the type complex128"),
    ):
        with pytest.raises(ImageError, match=message):
            check_registrable(Image(array, GRID), "fixed image")
    with pytest.raises(ImageError, match=r"too few voxels \(1 along z\)"):
        check_registrable(Image(image.array[:1], GRID.crop((0, 0, 0), (11, 9, 1))), "fixed image")


def test_masks_must_fit_their_image(image):
    check_mask(Image(image.array > 0, GRID), image, "fixed")
    with pytest.raises(ImageError, match="moving mask is empty"):
        check_mask(Image(np.zeros(GRID.shape), GRID), image, "moving")
    for other in (GRID.pad((0, 0, 0), (1, 0, 0)), Grid(GRID.size, GRID.spacing, (0, 0, 0), TURNED), Grid(GRID.size)):
        mask = Image(np.ones(other.shape, np.uint8), other)
        with pytest.raises(ImageError, match=r"fixed mask lies on another grid .* against .*; resample it to"):
            check_mask(mask, image, "fixed")


def test_the_grid_alone_is_read_from_the_header(tmp_path):
    grid = Grid((5, 6, 7), (1.0, 2.0, 3.0), (-4.0, 5.0, 6.0), ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    for components in (1, 3):
        image = sitk.GetImageFromArray(np.zeros((*grid.shape, components), np.float32), isVector=True)
        path = tmp_path / f"{components}.nrrd"
        sitk.WriteImage(place(image, grid), str(path))
        assert read_grid(path).is_close(grid, 1e-6)
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkUInt8), str(tmp_path / "flat.mha"))
    with pytest.raises(ImageError, match=r"fixed image '.*flat.mha': the image has 2 dimensions"):
        read_grid(tmp_path / "flat.mha", "fixed image")
    (tmp_path / "text.mha").write_text("hello")
    with pytest.raises(ImageError, match=r"text.mha' cannot be read"):
        read_grid(tmp_path / "text.mha")
    with pytest.raises(ImageError, match=r"gone.mha' does not exist"):
        read_grid(tmp_path / "gone.mha")


@pytest.mark.parametrize("margin", [0, 2, (1, 3, 40)])
def test_the_box_around_a_mask_and_its_margins_along_z_y_x(margin):
    mask = np.zeros((20, 30, 50), dtype=bool)
    mask[5, 10, 20] = mask[7, 13, 30] = True
    wider = np.ones([2 * m + 1 for m in np.broadcast_to(margin, 3)])
    expected = ndimage.find_objects(ndimage.binary_dilation(mask, wider).astype(int))[0]
    assert bounding_box(mask, margin) == expected


def test_the_box_of_nothing_is_everything():
    assert bounding_box(np.zeros((2, 3, 4), dtype=bool), 1) == (slice(0, 2), slice(0, 3), slice(0, 4))
