"""Input that is made to harm, or that no file is: one line, soon, and status 1."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from transform_cases import CHAINS, FIXED, SETTINGS, affine, moving_image, plain, smooth_field

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import ParameterError, TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.registration import register
from regnet_itk.stages.base import Stage, StageResult
from regnet_itk.transforms.chain import MOST_LINKS, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.warping import warp_image

NESTED = 200_000


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with images, a transform t.txt and a pipe of each suffix."""
    monkeypatch.chdir(tmp_path)
    write_image(moving_image(), "moving.mha")
    shutil.move(write_elastix(CHAINS["affine"], tmp_path)[-1], "t.txt")
    for suffix in (
        "mha",
        "mhd",
        "nii.gz",
        "nrrd",
        "txt",
        "toml",
        "csv",
        "fcsv",
        "mrk.json",
        "h5",
        "tfm",
        "safetensors",
    ):
        os.mkfifo(f"pipe.{suffix}")
    return tmp_path


def refused(capsys, *arguments):
    assert call(*arguments) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "internal error" not in lines[0]
    assert lines[0].startswith("regnet-itk: error: ")
    return lines[0]


IMAGES = ("-f", "moving.mha", "-m", "moving.mha")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("run", "-f", f"pipe.{suffix}", "-m", "moving.mha") for suffix in ("mha", "mhd", "nii.gz", "nrrd")),
        ("run", *IMAGES, "-fMask", "pipe.mha"),
        *(("run", *IMAGES, "-p", f"pipe.{suffix}") for suffix in ("txt", "toml")),
        *(("run", *IMAGES, "-t0", f"pipe.{suffix}") for suffix in ("txt", "toml", "h5", "tfm")),
        *(("run", *IMAGES, "-fp", f"pipe.{suffix}", "-mp", "t.txt") for suffix in ("txt", "csv", "fcsv", "mrk.json")),
        ("run", *IMAGES, "-p", "piped_model.txt"),
        ("transform", "-tp", "t.txt", "-in", "pipe.mha"),
        ("transform", "-tp", "t.txt", "-def", "pipe.txt"),
        ("transform", "-tp", "t.txt", "-in", "raw.mhd"),
        ("invert", "-tp", "pipe.txt"),
        ("compare", "pipe.csv"),
        ("compare", "piped.csv"),
        ("train", ".", "-c", "pipe.toml"),
    ],
)  # fmt: skip
def test_a_pipe_does_not_block(arguments, here, capsys):
    (here / "piped.csv").write_text("fixed,moving\npipe.mha,moving.mha\n")
    (here / "piped_model.txt").write_text(
        '(Registration "RegNetRegistration")\n(RegNetModel "pipe.safetensors")\n', encoding="utf-8"
    )
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = pipe.mha\n"
    (here / "raw.mhd").write_text(header)
    assert "is neither a file nor a folder" in refused(capsys, *arguments, "-out", "out")
    assert not (here / "out").exists()


def test_a_pipe_does_not_block_where_nothing_is_written(here, capsys):
    (here / "dicom").mkdir()
    os.mkfifo(here / "dicom" / "1.dcm")
    for suffix in ("mha", "unknown", "txt", "h5", "safetensors", "csv"):
        if suffix == "unknown":
            os.mkfifo("pipe.unknown")
        assert "is neither a file nor a folder" in refused(capsys, "info", f"pipe.{suffix}")
    assert "is neither a file nor a folder" in refused(capsys, "info", "dicom")
    assert "is neither a file nor a folder" in refused(capsys, "models", "pipe.safetensors")
    assert "is neither a file nor a folder" in refused(capsys, "convert", "pipe.h5", "x.txt")


@pytest.mark.parametrize("where", ["x" * 300, "x" * 300 + ".txt", "t.txt/below.txt", "loop.txt"])
def test_names_that_no_file_can_have(where, here, capsys):
    (here / "loop.txt").symlink_to("loop.txt")
    for arguments in (
        ("run", *IMAGES, "-p", where, "-out", "o"), ("run", *IMAGES, "-t0", where, "-out", "o"),
        ("run", "-f", where, "-m", where, "-out", "o"), ("run", *IMAGES, "-fp", where, "-mp", where, "-out", "o"),
        ("info", where), ("models", where), ("train", ".", "-c", where, "-out", "o"), ("compare", where, "-out", "o"),
        ("report", where), ("repair", where), ("convert", where, "o.h5"),
    ):  # fmt: skip
        refused(capsys, *arguments)


def test_files_that_are_nested_too_deeply(here, capsys):
    brackets = "[" * NESTED + "]" * NESTED
    (here / "p.toml").write_text(f"Transform = {brackets}\n")
    (here / "p.mrk.json").write_text(brackets)
    (here / "run").mkdir()
    (here / "run" / "registration.json").write_text(brackets)
    for arguments in (
        ("run", *IMAGES, "-p", "p.toml", "-out", "o"), ("run", *IMAGES, "-t0", "p.toml", "-out", "o"),
        ("train", ".", "-c", "p.toml", "-out", "o"), ("info", "p.mrk.json"), ("info", "p.toml"), ("report", "run"),
    ):  # fmt: skip
        assert "nested too deeply" in (line := refused(capsys, *arguments)) or "is damaged" in line


def test_a_chain_of_very_many_transforms(here, capsys):
    text = (here / "t.txt").read_text(encoding="utf-8")
    assert "NoInitialTransform" in text
    for number in range(1500):
        before = f"{number - 1}.txt" if number else "NoInitialTransform"
        (here / f"{number}.txt").write_text(text.replace("NoInitialTransform", before), encoding="utf-8")
    assert len(read_chain(f"{MOST_LINKS - 1}.txt").links) == MOST_LINKS
    assert np.isfinite(read_chain(f"{MOST_LINKS - 1}.txt").map_points([[1, 2, 3]])).all()
    for command in ("info", "convert"):
        line = refused(capsys, command, "1499.txt", *(["o.h5"] if command == "convert" else []))
        assert f"begins with more than {MOST_LINKS} others" in line
    many = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 0.0, 0.0))] * (MOST_LINKS + 1))
    sitk.WriteTransform(many, "many.tfm")
    with pytest.raises(TransformError, match="is made of more than 100 transforms"):
        read_chain("many.tfm")


@pytest.mark.parametrize("default", ["nan", "inf", "-inf"])
def test_whole_numbers_cannot_be_nan_outside(default, here, capsys):
    given = ("transform", "-tp", "t.txt", "-in", "moving.mha", "--default", default, "-out", "o")
    assert "type 'short' cannot hold; give another value (--default" in refused(capsys, *given)
    assert not (here / "o").exists()
    values = read_chain("t.txt").links[0].parameters
    with pytest.raises(ParameterError, match=r"DefaultPixelValue\), or the type float"):
        register(
            moving_image(), moving_image(), values.with_(Transform="TranslationTransform", DefaultPixelValue=default)
        )
    warped = warp_image(moving_image(), read_chain("t.txt"), FIXED.shifted if False else FIXED, default=float(default))
    assert warped.array.dtype == np.float32


class Folding(Stage):
    """Finds a field that folds in a part of the image, or a matrix that does not."""

    def run(self, pair, initial, options):
        u = np.zeros((*FIXED.shape, 3), np.float32)
        u[8, 10, 5:15] = [[60.0 * (-1) ** i, 0, 0] for i in range(10)]
        link = link_field(DisplacementField(u, FIXED), SETTINGS)
        return StageResult(initial.then(plain(affine()) if "Good" in self.parameters else link), 0.0, pair.fixed)


def test_a_result_that_folds_is_said(caplog):
    image = Image(np.random.default_rng(0).integers(-1000, 500, FIXED.shape).astype(np.int16), FIXED)
    good, bad = Folding(ParameterMap({"Good": ("1",)})), Folding(ParameterMap({}))
    result = register(image, image, [good, bad])
    (line,) = [record.getMessage() for record in caplog.records if "folds" in record.getMessage()]
    share = f"{100 * result.folding:.2g} %"
    assert line.startswith(f"stage 1 {bad.name}: the transform folds (det J <= 0) at {share} of the voxels")
    assert 0 < result.folding < 0.2
    caplog.clear()
    register(image, image, [good], initial=TransformChain((plain(affine()), link_field(smooth_field(), SETTINGS))))
    assert "folds" not in caplog.text


def test_images_of_a_few_voxels_are_said(caplog):
    values = np.random.default_rng(0).integers(-1000, 200, (4, 4, 4)).astype(np.int16)
    image = Image(values, Grid((4, 4, 4), (6.0, 6.0, 6.0)))
    register(image, image, "regnet_multistage_fast", device="cpu")
    assert "the fixed image has 4 x 4 x 4 voxels of 6 x 6 x 6 mm, too little for a network" in caplog.text
