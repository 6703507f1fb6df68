"""Files are read as SimpleITK, nibabel and elastix read them, or refused in one line."""

from __future__ import annotations

import gzip
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, check_mask
from regnet_itk.data.image_files import read_grid, read_image, write_image
from regnet_itk.errors import ImageError, TransformError

TURNED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
GRID = Grid((11, 9, 8), (1.5, 2.0, 3.0), (-40.0, 15.0, 130.0), TURNED)
HU = np.random.default_rng(0).integers(-1000, 1000, GRID.shape).astype(np.int16)


def patched(path, at, form, *values):
    """Overwrite a part of a file, packed or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        raw = bytearray(file.read())
    struct.pack_into(form, raw, at, *values)
    with opened(path, "wb") as file:
        file.write(raw)


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("stored", "slope", "intercept"),
    [(np.uint16, 1.0, -1024.0), (np.int16, 0.5, 0.0), (np.uint8, 8.0, -1024.0), (np.int16, 0.0, 5.0),
     (np.float32, 2.0, 10.0), (np.float64, -0.5, 3.0)],
)  # fmt: skip
def test_scaled_nifti_has_the_values_that_simpleitk_reads(stored, slope, intercept, suffix, tmp_path):
    path = tmp_path / f"scaled{suffix}"
    write_image(Image((HU + 1024).astype(stored), GRID), path)
    patched(path, 112, "<2f", slope, intercept)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert expected.dtype.kind == "f" or slope == 0.0
    np.testing.assert_allclose(read_image(path).array, expected, rtol=1e-6)
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    with pytest.raises(ImageError, match=r"scaled.nii.* is cut off"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_nan_stays_nan_in_every_format(suffix, tmp_path):
    values = HU.astype(np.float32)
    values[3, 4, 5] = np.nan
    write_image(Image(values, GRID), tmp_path / f"a{suffix}")
    found = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found.array, values)
    assert found.grid.is_close(GRID, tolerance=1e-4)


def test_a_nifti_field_with_nan_is_refused_though_itk_reads_zero(tmp_path):
    vectors = np.ones((*GRID.shape, 3), np.float32)
    sitk.WriteImage(DisplacementField(vectors, GRID).to_sitk(), str(tmp_path / "u.nii"))
    np.testing.assert_array_equal(read_displacement_field(tmp_path / "u.nii").vectors, vectors)
    patched(tmp_path / "u.nii", 352 + 40, "<f", math.nan)
    assert np.isfinite(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "u.nii")))).all()
    with pytest.raises(TransformError, match=r"u.nii' holds values that are NaN"):
        read_displacement_field(tmp_path / "u.nii")


@pytest.mark.parametrize(
    ("at", "form", "values", "message"),
    [
        (80, "<f", (0.0,), r"voxels of 0 x 2 x 3 mm by its header"),
        (84, "<f", (math.nan,), r"voxels of 1.5 x nan x 3 mm"),
        (88, "<f", (5.0,), r"contradicts itself: its voxels are 1.5 x 2 x 5 mm by pixdim and 1.5 x 2 x 3 mm by its"),
        (280, "<8f", (-1.5, -0.7, 0, 40, 0, -1.8735, 0, 0), r"is sheared: two axes of its sform meet at 69.5"),
        (280, "<12f", (0.0,) * 12, r"an sform that is singular"),
    ],
)  # fmt: skip
def test_nifti_headers_that_say_two_things_or_nothing(at, form, values, message, tmp_path):
    straight = Grid(GRID.size, GRID.spacing, GRID.origin)
    write_image(Image(HU, straight), tmp_path / "a.nii")
    patched(tmp_path / "a.nii", at, form, *values)
    sitk.ReadImage(str(tmp_path / "a.nii"))  # without a word
    for read in (read_image, read_grid):
        with pytest.raises(ImageError, match=f"image '.*a.nii' .*{message}"):
            read(tmp_path / "a.nii")


def test_a_turned_nifti_of_both_byte_orders_is_read(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ GRID.index_to_point_matrix
    affine[:3, 3] = np.diag([-1.0, -1.0, 1.0]) @ np.array(GRID.origin)
    for order in "<>":
        header = nibabel.Nifti1Header(endianness=order)
        header.set_data_dtype(np.dtype(np.float32).newbyteorder(order))
        nibabel.save(nibabel.Nifti1Image(HU.T.astype(np.float32), affine, header), tmp_path / "a.nii.gz")
        found = read_image(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(found.array, HU)
        assert found.grid.is_close(GRID, tolerance=1e-3)


# Damaged files


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_a_bit_that_flips_in_packed_voxels_is_noticed(suffix, tmp_path):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"flipped{suffix}"
    write_image(Image(HU, GRID), whole)
    raw, rng = whole.read_bytes(), np.random.default_rng(1)
    for at in rng.integers(len(raw) // 2, len(raw) - 8, 30):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ImageError, match=r"flipped.* (is damaged|is cut off|cannot be read)"):
            read_image(path)
    np.testing.assert_array_equal(read_image(whole).array, HU)


def test_packed_meta_images_of_every_type_order_and_kind(tmp_path):
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64):
        for name in ("a.mha", "a.mhd"):
            sitk.WriteImage(Image(HU.astype(dtype), GRID).to_sitk(), str(tmp_path / name), useCompression=True)
            found = read_image(tmp_path / name).array
            np.testing.assert_array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))))
            assert found.dtype == dtype
    vectors = np.random.default_rng(3).normal(size=(*GRID.shape, 3)).astype(np.float32)
    DisplacementField(vectors, GRID).write(tmp_path / "u.mha")
    np.testing.assert_array_equal(read_displacement_field(tmp_path / "u.mha").vectors, vectors)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"NDims = 3", b"NDims = 1000000000", "NDims = 1000000000"),
        (b"NDims = 3", b"NDims = 3_0", "NDims = 3_0"),
        (b"TransformMatrix = 1 ", b"TransformMatrix = 1e308 ", "'1e308' in TransformMatrix"),
        (b"TransformMatrix = 1 ", b"TransformMatrix = nan ", "'nan' in TransformMatrix"),
        (b"ElementSpacing = 1 ", b"ElementSpacing = inf ", "'inf' in ElementSpacing"),
        (b"DimSize = 11 ", b"DimSize = 99999999999 ", "DimSize = 99999999999 9 8"),
        (b"DimSize = 11 ", b"DimSize = 11 2 ", "no size of an image"),
    ],
)
def test_headers_that_make_itk_hang_or_crash_are_told_in_one_line(old, new, message, tmp_path):
    write_image(Image(HU, Grid(GRID.size)), tmp_path / "a.mha")
    raw = (tmp_path / "a.mha").read_bytes()
    assert old in raw
    (tmp_path / "a.mha").write_bytes(raw.replace(old, new))
    program = f"from regnet_itk.data.image_files import read_image; read_image({str(tmp_path / 'a.mha')!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("written", "named", "message"),
    [(".nrrd", ".mha", "a NRRD file, not what its suffix .mha says"), (".nii.gz", ".nii", "it is a gzip file"),
     (".nii", ".nii.gz", "something else, not what its suffix .nii.gz"), (".mha", ".nrrd", "something else"),
     (".mha", ".nii", "does not begin with a NIfTI-1 header"), (".nii", ".mhd", "no MetaImage")],
)  # fmt: skip
def test_files_whose_suffix_lies(written, named, message, tmp_path):
    write_image(Image(HU, GRID), tmp_path / f"a{written}")
    (tmp_path / f"a{written}").rename(tmp_path / f"b{named}")
    with pytest.raises(ImageError, match=f"b{named}' cannot be read: .*{message}"):
        read_image(tmp_path / f"b{named}")


def test_what_is_neither_a_file_nor_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.mha")
    for path, message in ((tmp_path / "pipe.mha", "neither a file nor a folder"), (tmp_path / ("x" * 300), "too long")):
        with pytest.raises(ImageError, match=message):
            read_image(path)


# DICOM


def write_series(folder, positions, axes=None, spacing=None):
    """Write slices as scanners do; each argument has a value for every slice."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    straight = np.array([1.0, 0, 0, 0, 1.0, 0])
    for z, position in enumerate(positions):
        part = sitk.JoinSeries(sitk.GetImageFromArray(HU[z % len(HU)]))[:, :, 0]
        part.SetSpacing((spacing or [(2.0, 2.0)] * len(positions))[z])
        tags = {
            "0008|0060": "CT", "0020|000e": "1.2.3", "0020|000d": "1.2", "0008|0018": f"1.2.3.{z + 1}",
            "0020|0032": "\\".join(f"{v:.6f}" for v in position),
            "0020|0037": "\\".join(f"{v:.8f}" for v in (straight if axes is None else axes[z])),
            "0020|0013": str(z + 1), "0018|0050": "5",
        }  # fmt: skip
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03}.dcm"))
        writer.Execute(part)


def test_a_tilted_gantry_is_refused_and_a_turned_series_is_not(tmp_path):
    tilt = math.radians(15)
    tilted = np.array([1.0, 0, 0, 0, math.cos(tilt), -math.sin(tilt)])
    write_series(tmp_path / "tilted", [(-50, -40, 5.0 * z) for z in range(8)], [tilted] * 8)
    with pytest.raises(ImageError, match=r"tilted gantry: each slice lies 1.29 mm beside .*\(15.0 degrees\).*by 9 mm"):
        read_image(tmp_path / "tilted")
    normal = np.cross(tilted[:3], tilted[3:])
    write_series(tmp_path / "turned", [tuple(5.0 * z * normal) for z in range(8)], [tilted] * 8)
    grid = read_image(tmp_path / "turned").grid
    np.testing.assert_allclose(grid.index_to_point([0, 0, 7]), 35 * normal, atol=1e-4)


@pytest.mark.parametrize("what", ["spacing", "axes"])
def test_slices_that_differ_are_no_series(what, tmp_path):
    turned = np.array([1.0, 0, 0, 0, 0.98480775, -0.17364818])
    odd = {
        "spacing": {"spacing": [(2.0, 2.0)] * 4 + [(1.0, 1.0)] * 4},
        "axes": {"axes": [np.array([1.0, 0, 0, 0, 1.0, 0])] * 4 + [turned] * 4},
    }[what]
    write_series(tmp_path / "mixed", [(0, 0, 5.0 * z) for z in range(8)], **odd)
    name = {"spacing": "PixelSpacing", "axes": "ImageOrientationPatient"}[what]
    with pytest.raises(ImageError, match=rf"different .*\({name}\): .* in slice 0 and .* in slice 4"):
        read_image(tmp_path / "mixed")


def test_scalings_that_vary_from_slice_to_slice(tmp_path):
    scaling = [(1, 0), (0.25, 10), (2, -3.5), (1.5, 0), (1, 0), (1, 0), (1, 0), (0.5, 0.25)]
    pydicom = pytest.importorskip("pydicom")
    write_series(tmp_path / "pet", [(0, 0, 5.0 * z) for z in range(8)])
    for z, (slope, intercept) in enumerate(scaling):
        dataset = pydicom.dcmread(tmp_path / "pet" / f"{z:03}.dcm")
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.save_as(tmp_path / "pet" / f"{z:03}.dcm")
    found = read_image(tmp_path / "pet").array
    for z in range(8):  # the judge: every slice by itself, as SimpleITK reads it
        alone = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "pet" / f"{z:03}.dcm"), sitk.sitkFloat64))
        np.testing.assert_allclose(found[z], alone.reshape(found[z].shape), atol=1e-3)


# Masks


def test_masks_of_anything_but_whole_numbers_are_refused():
    inside = np.zeros(GRID.shape, np.float32)
    inside[2:5, 2:5, 2:5] = 1
    image = Image(HU, GRID)
    check_mask(Image(inside, GRID), image, "fixed")
    for outside, share in ((np.nan, "100%"), (1e-9, "100%"), (-0.25, "100%")):
        values = np.where(inside > 0, inside, np.float32(outside))
        with pytest.raises(ImageError, match=f"the fixed mask has {values.size - 27} voxels that are NaN or .*{share}"):
            check_mask(Image(values, GRID), image, "fixed")
    with pytest.raises(ImageError, match="27 voxels"):
        check_mask(Image(np.where(inside > 0, np.float32(np.inf), inside), GRID), image, "fixed")


# What a fuzz run has found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"LOCAL\n", b"LOCAL", "the file of its voxels"),
        (b"LOCAL\n", b"%LOCAL\x01\n", "the file of its voxels"),
        (b"CompressedDataSize", b"CompressedDataSiz", "does not say to what size"),
        (b"BinaryData = True", b"BinaryData = xTrue", "neither True nor False"),
        (b"NDims = 3\n", b"NDims = 3\nNDims = 3\n", "two lines 'NDims'"),
        (b"BinaryData = True", b"Binary True", "a line 'Binary True' without '='"),
        (b"BinaryData = True", b"Binary = True", "does not say BinaryData = True"),
        (b"NDims = 3\n", b"NDims = 3\n\x01\x02\n", "that is no text"),
        (b"NDims = 3\n", b"NDims = 3\n" + b"A" * 5000 + b"\n", "a line of 5000 characters"),
    ],
)
def test_headers_of_meta_images_that_make_itk_crash_or_read_other_values(old, new, message, tmp_path):
    write_image(Image(HU, Grid(GRID.size)), tmp_path / "a.mha")
    raw = (tmp_path / "a.mha").read_bytes()
    assert old in raw
    (tmp_path / "a.mha").write_bytes(raw.replace(old, new, 1))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(b"type: short", b"typ" + b"A" * 5000, "a line of 5003 characters"), (b"sizes: 11", b"sizes:\x00 11", "no text"),
     (b"\n\n", b"\n \n", "its header has no end")],
)  # fmt: skip
def test_headers_of_nrrd_that_make_its_reader_crash(old, new, message, tmp_path):
    write_image(Image(HU, GRID), tmp_path / "a.nrrd", compress=False)
    raw = (tmp_path / "a.nrrd").read_bytes()
    assert old in raw
    end = raw.index(b"\n\n") + 2
    (tmp_path / "a.nrrd").write_bytes(raw[:end].replace(old, new, 1) + raw[end:].replace(b"\n\n", b"\n\1"))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("at", "form", "values", "message"),
    [(344, "4s", (b"ni1\0",), "no NIfTI-1 file of one piece"), (108, "<f", (348.0,), "from byte 348 on"),
     (108, "<f", (math.nan,), "from byte nan on"), (42, "<h", (-11,), "no size of an image"),
     (40, "<h", (9,), "no size of an image")],
)  # fmt: skip
def test_nifti_headers_by_which_itk_reads_other_bytes(at, form, values, message, tmp_path):
    write_image(Image(HU.astype(np.float32), GRID), tmp_path / "a.nii")
    patched(tmp_path / "a.nii", at, form, *values)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.nii")
