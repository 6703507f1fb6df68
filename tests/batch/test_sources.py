"""What is given to be registered: data sets in the order of BIDS, and series of frames."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from shifted_pairs import GRID, TRUE, shift

from regnet_itk.batch.bids import BidsName, read_bids
from regnet_itk.batch.run import plan_batch, run_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.batch.sources import SourceOptions, read_source
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.errors import ImageError, OutputError, ParameterError


def scan(shift=(0.0, 0.0, 0.0), seed=0):
    """A smooth image on a turned, anisotropic grid that lies elsewhere by a vector."""
    values = np.cumsum(np.random.default_rng(seed).normal(0, 60, GRID.shape), axis=0)
    moved = type(GRID)(GRID.size, GRID.spacing, tuple(np.array(GRID.origin) + shift), GRID.direction)
    return Image(values.astype(np.float32), moved)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Three subjects: one with three sessions and two images each, one with two, one with one."""
    folder = tmp_path_factory.mktemp("bids")
    names = {
        "01": {"a": ("T1w", "acq-sharp_T1w"), "b": ("T1w", "acq-sharp_T1w"), "c": ("T1w",)},
        "02": {"a": ("T1w",), "b": ("T1w", "T2w")},
        "03": {"a": ("T1w",)},
    }
    for subject, sessions in names.items():
        for number, (session, images) in enumerate(sessions.items()):
            where = folder / f"sub-{subject}" / f"ses-{session}" / "anat"
            where.mkdir(parents=True)
            for image in images:
                write_image(scan(number * TRUE), where / f"sub-{subject}_ses-{session}_{image}.nii.gz")
            (where / f"sub-{subject}_ses-{session}_T1w.json").write_text("{}")
    (folder / "dataset_description.json").write_text('{"Name": "a test", "BIDSVersion": "1.9.0"}')
    return folder


def names(pairs):
    return [(pair.fixed.name.removesuffix(".nii.gz"), pair.name) for pair in pairs]


def test_the_sessions_of_a_subject_are_paired_with_its_first(data_set):
    assert names(read_bids(data_set)) == [
        ("sub-01_ses-a_T1w", "sub-01_ses-b_T1w"),
        ("sub-01_ses-a_acq-sharp_T1w", "sub-01_ses-b_acq-sharp_T1w"),
        ("sub-01_ses-a_T1w", "sub-01_ses-c_T1w"),
        ("sub-02_ses-a_T1w", "sub-02_ses-b_T1w"),
    ]
    assert {pair.group for pair in read_bids(data_set)} == {"sub-01", "sub-02"}


@pytest.mark.parametrize("label", ["c", "ses-c"])
def test_another_session_may_be_the_fixed_one(data_set, label):
    assert names(read_bids(data_set, fixed_session=label)) == [
        ("sub-01_ses-c_T1w", "sub-01_ses-a_T1w"),
        ("sub-01_ses-c_T1w", "sub-01_ses-b_T1w"),
    ]


def test_some_of_the_images(data_set):
    assert names(read_bids(data_set, "*/*_acq-sharp_*")) == [
        ("sub-01_ses-a_acq-sharp_T1w", "sub-01_ses-b_acq-sharp_T1w")
    ]


@pytest.mark.parametrize("more", [{"images": "ct/*"}, {"fixed_session": "z"}])
def test_no_pair_at_all(data_set, more):
    with pytest.raises(ParameterError, match="holds no two sessions of a subject"):
        read_bids(data_set, **more)


def test_what_is_no_name_of_bids(tmp_path):
    for name in ("sub-01_T1w.nii", "sub-01_ses-1_x_T1w.nii", "sub-01_ses-_T1w.nii", "scan.nii", "sub-01_ses-1_.nii"):
        assert BidsName.parse(tmp_path / name) is None
    assert BidsName.parse(tmp_path / "sub-01_ses-1_run-2_bold.nii.gz").suffix == "bold"


def test_the_derivatives(data_set, tmp_path):
    out = tmp_path / "derivatives" / "regnet-itk"
    source = read_source(data_set, out)
    settings = BatchSettings((shift(tmp_path / "log", *TRUE),))
    assert not run_batch(plan_batch(source.pairs, out, settings, source.export), LocalEngine(1)).failed
    where = out / "sub-01" / "ses-b" / "anat"
    assert sorted(file.name for file in where.iterdir()) == [
        f"sub-01_ses-b_{name}"
        for name in (
            "acq-sharp_from-sesbT1w_to-sesaT1w_mode-image_xfm.h5",
            "acq-sharp_from-sesbT1w_to-sesaT1w_mode-image_xfm.json",
            "acq-sharp_space-sesa_desc-registered_T1w.json",
            "acq-sharp_space-sesa_desc-registered_T1w.nii.gz",
            "from-sesbT1w_to-sesaT1w_mode-image_xfm.h5",
            "from-sesbT1w_to-sesaT1w_mode-image_xfm.json",
            "space-sesa_desc-registered_T1w.json",
            "space-sesa_desc-registered_T1w.nii.gz",
        )
    ]
    transform = sitk.ReadTransform(str(where / "sub-01_ses-b_from-sesbT1w_to-sesaT1w_mode-image_xfm.h5"))
    assert np.allclose(transform.TransformPoint((1.0, 2.0, 3.0)), np.add(TRUE, (1, 2, 3)))
    fixed = sitk.ReadImage(str(data_set / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz"))
    warped = sitk.ReadImage(str(where / "sub-01_ses-b_space-sesa_desc-registered_T1w.nii.gz"))
    assert np.allclose(warped.GetOrigin(), fixed.GetOrigin(), atol=1e-4)
    assert np.allclose(warped.GetDirection(), fixed.GetDirection(), atol=1e-5)
    inside = (slice(2, -2),) * 3
    assert np.abs(sitk.GetArrayFromImage(warped) - sitk.GetArrayFromImage(fixed))[inside].max() < 0.1
    sidecar = json.loads((where / "sub-01_ses-b_space-sesa_desc-registered_T1w.json").read_text())
    assert sidecar["SpatialReference"] == "bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"]["raw"] == data_set.as_uri()
    assert (out / ".bidsignore").read_text().splitlines() == ["/pairs/", "/claims/", "/batch.*"]


def test_another_data_set_is_not_written_to(data_set, tmp_path):
    shutil.copytree(data_set, tmp_path / "raw")
    for out in (tmp_path / "raw", data_set):
        with pytest.raises(OutputError, match=r"is another data set: give .* such as '.*derivatives/regnet-itk'"):
            read_source(tmp_path / "raw", out)
        assert "a test" in (out / "dataset_description.json").read_text()
    (tmp_path / "raw" / "dataset_description.json").unlink()
    with pytest.raises(OutputError, match="is another data set"):
        read_source(tmp_path / "raw", tmp_path / "raw")


# Series


@pytest.fixture
def series(tmp_path):
    """Six frames of which frame n lies n voxels further along the first axis, on a turned grid; the file's path."""
    base = scan()
    frames = [sitk.GetImageFromArray(np.roll(base.array, number, axis=2)) for number in range(6)]
    for frame in frames:
        frame.CopyInformation(base.to_sitk())
    joined = sitk.JoinSeries(frames, 7.5, 0.5)
    sitk.WriteImage(joined, str(tmp_path / "series.nrrd"))
    return tmp_path / "series.nrrd"


def test_the_frames_are_those_that_itk_cuts_out(series, tmp_path):
    pairs = read_source(series, tmp_path / "out", SourceOptions(fixed_frame=4)).pairs
    assert [pair.name for pair in pairs] == [f"frame-{n:03d}" for n in range(6) if n != 4]
    assert {pair.fixed.name for pair in pairs} == {"frame-004.mha"}
    whole = sitk.ReadImage(str(series))
    size = [*whole.GetSize()[:3], 0]
    for number in (0, 3, 5):
        theirs = sitk.Extract(whole, size, [0, 0, 0, number], sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX)
        ours = sitk.ReadImage(str(tmp_path / "out" / "frames" / f"frame-{number:03d}.mha"))
        assert np.array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(theirs))
        for place in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(ours, place)(), getattr(theirs, place)(), atol=1e-12)


def test_frames_are_written_once_and_anew_if_the_series_changes(series, tmp_path):
    read_source(series, tmp_path / "out")
    frame = tmp_path / "out" / "frames" / "frame-003.mha"
    written = frame.stat().st_mtime_ns
    read_source(series, tmp_path / "out")
    assert frame.stat().st_mtime_ns == written
    frame.unlink()
    read_source(series, tmp_path / "out")
    assert frame.exists()
    changed = sitk.ReadImage(str(series))
    changed[5, 5, 5, 3] = 1234.0
    sitk.WriteImage(changed, str(series))
    read_source(series, tmp_path / "out")
    assert read_image(frame).array[5, 5, 5] == 1234.0


def test_the_registered_series(series, tmp_path):
    source = read_source(series, tmp_path / "out", SourceOptions(fixed_frame=4))
    one_voxel = GRID.direction_matrix[:, 0] * GRID.spacing[0]
    settings = BatchSettings((shift(tmp_path / "log", *one_voxel, Warp="true"),))
    assert not run_batch(plan_batch(source.pairs, tmp_path / "out", settings), LocalEngine(1)).failed
    path = source.finish()
    whole, found = sitk.ReadImage(str(series)), sitk.ReadImage(str(path))
    assert found.GetSize() == whole.GetSize()
    for place in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(found, place)(), getattr(whole, place)())
    frames = sitk.GetArrayFromImage(found)
    assert np.array_equal(frames[4], sitk.GetArrayFromImage(whole)[4])
    inside = (slice(2, -2),) * 3
    assert np.abs(frames[5] - frames[4])[inside].max() < 0.1  # moved back by the voxel it lay further
    assert np.abs(frames[1] - frames[0])[inside].max() > 10


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"fixed_frame": 6}, ParameterError, "has no frame 6: give `fixed_frame` from 0 to 5"),
        ({"images": "*"}, ParameterError, "is a series, for which `images` means nothing"),
        ({"fixed_session": "a"}, ParameterError, "is a series, for which `fixed_session` means nothing"),
    ],
)
def test_what_is_asked_of_a_series_in_vain(series, tmp_path, options, error, told):
    with pytest.raises(error, match=told):
        read_source(series, tmp_path / "out", SourceOptions(**options))


def test_what_is_no_series(tmp_path, capfd):
    write_image(scan(), tmp_path / "scan.mha")
    with pytest.raises(ImageError, match="to register two images use regnet-itk run"):
        read_source(tmp_path / "scan.mha", tmp_path / "out")
    (tmp_path / "list.csv").write_text("fixed,moving\na.mha,b.mha\n")
    assert call("batch", tmp_path / "list.csv", "-out", tmp_path / "out", "--fixed-frame", 2) == 1
    assert "is a list of pairs, for which --fixed-frame means nothing; leave it out" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_frames_that_lie_nowhere(tmp_path):
    image = sitk.Image([4, 4, 4, 3], sitk.sitkFloat32)
    turned = np.eye(4)
    turned[np.ix_([0, 3], [0, 3])] = [[0.8, -0.6], [0.6, 0.8]]
    image.SetDirection(turned.ravel())
    sitk.WriteImage(image, str(tmp_path / "series.nrrd"))
    with pytest.raises(ImageError, match=r"fourth axis of '.*' is not apart"):
        read_source(tmp_path / "series.nrrd", tmp_path / "out")
