"""The stand-ins for elastix and transformix: called as 3D Slicer and MITK call them, judged by the real programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import command
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.cli.shim import stand_in
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import OutputError
from regnet_itk.interfaces.stand_ins import write_launchers
from regnet_itk.parameters import read_parameter_map
from regnet_itk.stages.registry import check_parameter_map
from regnet_itk.transforms.elastix_reading import read_chain

REAL = {program: shutil.which(program) for program in ("elastix", "transformix")}
real_programs = pytest.mark.skipif(None in REAL.values(), reason="elastix and transformix are not installed")
# What 3D Slicer sets for its own Python and ITK; no Python starts with these
SLICER = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "LD_LIBRARY_PATH": "/nowhere", "PYTHONNOUSERSITE": "1"}
TRANSLATION = """
(Registration "MultiResolutionRegistration")
(FixedInternalImagePixelType "float")
(MovingInternalImagePixelType "float")
(FixedImageDimension 3)
(MovingImageDimension 3)
(UseDirectionCosines "true")
(FixedImagePyramid "FixedSmoothingImagePyramid")
(MovingImagePyramid "MovingSmoothingImagePyramid")
(Interpolator "BSplineInterpolator")
(ResampleInterpolator "FinalBSplineInterpolator")
(Resampler "DefaultResampler")
(Optimizer "AdaptiveStochasticGradientDescent")
(Transform "TranslationTransform")
(Metric "AdvancedMeanSquares")
(NumberOfResolutions 2)
(MaximumNumberOfIterations 30)
(NumberOfSpatialSamples 1000)
(ImageSampler "RandomCoordinate")
(NewSamplesEveryIteration "true")
(HowToCombineTransforms "Compose")
(DefaultPixelValue 0)
(RandomSeed 1)
"""


@pytest.fixture(scope="module")
def slicer(tmp_path_factory):
    """A folder as SlicerElastix prepares it: launchers, input images, parameter files."""
    folder = tmp_path_factory.mktemp("slicer scene")
    write_launchers(folder / "bin")
    write_phantom(make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0)), folder / "input")
    quick = read_parameter_map(folder / "bin" / "parameter_files" / "affine.txt").with_(
        NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=40
    )
    (folder / "affine.txt").write_text(quick.to_text())
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two images and a quick parameter file of elastix's own."""
    monkeypatch.chdir(tmp_path)
    grid = Grid(
        (26, 24, 22), (2.0, 2.5, 3.0), (-10.0, 20.0, 30.0), ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    )
    noise = gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2)
    fixed = Image((noise * 200 / noise.std()).astype(np.int16), grid)
    write_image(fixed, "f.mha")
    moved = fixed.resampled(grid, sitk.TranslationTransform(3, (2, -1, 1.5)))
    write_image(Image(moved.array.astype(np.int16), grid), "m.mha")
    Path("p.txt").write_text(TRANSLATION, encoding="utf-8")
    Path("out").mkdir()
    return tmp_path


def popen(slicer, program, arguments):
    """Start a program as SlicerElastix does."""
    environment = {**os.environ, **SLICER, "PATH": f"{slicer / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.Popen([slicer / "bin" / program, *map(str, arguments)], env=environment, cwd="/",
                            stdout=subprocess.PIPE, universal_newlines=True)  # fmt: skip


def registered(line):
    return stand_in(["elastix", "-f", "f.mha", "-m", "m.mha", "-out", "out", "-threads", "1", *line.split()])


# 3D Slicer


def test_the_command_lines_of_slicer_elastix(slicer):
    inputs, transforms, resampled = slicer / "input", slicer / "result-transform", slicer / "result-resample"
    transforms.mkdir()
    resampled.mkdir()
    process = popen(slicer, "elastix", [
        "-f", inputs / "fixed.mha", "-m", inputs / "moving.mha", "-fMask", inputs / "fixed_mask.mha",
        "-mMask", inputs / "moving_mask.mha", "-out", transforms,
        "-p", slicer / "affine.txt", "-p", slicer / "bin" / "parameter_files" / "regnet_multistage.txt",
    ])  # fmt: skip
    first = process.stdout.readline()
    assert first.startswith("elastix is started at")
    assert (
        len((transforms / "elastix.log").read_text(encoding="utf-8")) < 2000
    )  # the line came at once, not with the next 8 kB
    rest = process.stdout.read()
    assert process.wait() == 0, rest
    assert "Resolution: 0\n" in rest
    assert "RegNet" in rest
    assert first + rest == (transforms / "elastix.log").read_text(encoding="utf-8")
    assert {file.name for file in transforms.iterdir()} == {
        "elastix.log", "IterationInfo.0.R0.txt", "IterationInfo.0.R1.txt", "deformationField.1.mha",
        *(f"TransformParameters.{n}.txt" for n in "01"), *(f"TransformParameters.{n}-Composite.h5" for n in "01"),
        *(f"result.{n}.{kind}" for n in "01" for kind in ("mhd", "raw")),
    }  # fmt: skip

    process = popen(slicer, "transformix", [
        "-tp", transforms / "TransformParameters.1.txt", "-out", resampled, "-in", inputs / "moving.mha", "-def", "all",
    ])  # fmt: skip
    output = process.stdout.read()
    assert process.wait() == 0, output
    assert {"result.mhd", "deformationField.mhd", "transformix.log"} <= set(os.listdir(resampled))

    composite = sitk.ReadTransform(str(transforms / "TransformParameters.1-Composite.h5"))
    fixed, moving = (sitk.ReadImage(str(inputs / f"{name}.mha")) for name in ("fixed", "moving"))
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, composite, sitk.sitkBSpline3, -1000.0))
    for image in (resampled / "result.mhd", transforms / "result.1.mhd"):
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
        assert np.percentile(np.abs(found - expected.astype(float)), 99) <= 1
    field = sitk.ReadImage(str(resampled / "deformationField.mhd"), sitk.sitkVectorFloat64)
    assert field.GetSize() == fixed.GetSize()
    assert field.GetDirection() == pytest.approx(fixed.GetDirection())
    u = sitk.DisplacementFieldTransform(field)
    landmarks = read_landmarks(inputs / "fixed_points.txt").points.tolist()
    affine = sitk.ReadTransform(str(transforms / "TransformParameters.0-Composite.h5"))
    changed = []
    for landmark in landmarks:
        point = fixed.TransformIndexToPhysicalPoint(fixed.TransformPhysicalPointToIndex(landmark))
        assert u.TransformPoint(point) == pytest.approx(composite.TransformPoint(point), abs=1e-3)
        changed.append(np.subtract(affine.TransformPoint(point), composite.TransformPoint(point)))
    assert np.abs(changed).max() > 0.5


def test_where_slicer_starts_from(here):
    """An initial transform comes as an ITK file, named by a parameter file of the kind "File"."""
    sitk.WriteTransform(sitk.TranslationTransform(3, (-1.5, 0.5, -1.0)), "initial.h5")
    Path("initial.txt").write_text(
        '(InitialTransformParametersFileName "NoInitialTransform")\n(HowToCombineTransforms "Compose")\n'
        f'(Transform "File")\n(TransformFileName "{here}/initial.h5")\n',
        encoding="utf-8",
    )
    assert registered("-t0 initial.txt -p p.txt") == 0
    chain = read_chain("out/TransformParameters.0.txt")
    assert len(chain.links) == 2
    np.testing.assert_allclose(chain.as_matrix().translation, (-2.0, 1.0, -1.5), atol=0.3)
    np.testing.assert_allclose(chain.links[0].transform.translation, (-1.5, 0.5, -1.0), atol=1e-9)


@pytest.mark.parametrize("suffix", ["h5", "tfm"])
def test_the_composite_is_written_where_it_is_asked_for(suffix, here):
    Path("c.txt").write_text(
        f'{TRANSLATION}(WriteITKCompositeTransform "true")\n(ITKTransformOutputFileNameExtension "{suffix}")\n',
        encoding="utf-8",
    )
    assert registered("-p p.txt -p c.txt") == 0
    assert [file.name for file in Path("out").glob("*Composite*")] == [f"TransformParameters.1-Composite.{suffix}"]
    composite = sitk.ReadTransform(f"out/TransformParameters.1-Composite.{suffix}")
    expected = read_chain("out/TransformParameters.1.txt").map_points([1.0, 2.0, 3.0])
    assert composite.TransformPoint((1.0, 2.0, 3.0)) == pytest.approx(expected, abs=1e-6)


def test_the_parameter_files_for_slicer_are_right(slicer):
    files = sorted((slicer / "bin" / "parameter_files").iterdir())
    assert {"affine.txt", "regnet.txt", "regnet_multistage.txt", "bspline_refine.txt"} <= {f.name for f in files}
    for file in files:
        values = read_parameter_map(file)
        assert check_parameter_map(values) == []
        assert values["ResultImageFormat"] == ("mhd",)


def test_every_flag_means_what_it_means_in_elastix(here, monkeypatch, capfd):
    given = {}

    def register(*images, **others):
        given.update(others, images=images)
        raise OutputError("enough")

    monkeypatch.setattr("regnet_itk.registration.register", register)
    words = "-fMask a -mMask b -t0 c -fp d -mp e -threads 1 -priority idle -p p.txt -p affine"
    assert registered(words.replace("-threads 1 ", "")) == 1
    images = given.pop("images")
    assert images[:2] == (("f.mha",), ("m.mha",))
    assert [values.get_str("Transform") for values in images[2]] == ["TranslationTransform", "AffineTransform"]
    expected = {
        "fixed_mask": ("a",),
        "moving_mask": ("b",),
        "initial": "c",
        "fixed_landmarks": "d",
        "moving_landmarks": "e",
    }
    assert {name: given[name] for name in expected} == expected
    assert (given["threads"], given["priority"]) == (1, "idle")
    assert "ERROR: enough" in capfd.readouterr().out


# MITK, and what programs ask first


@pytest.mark.parametrize("program", ["elastix", "transformix"])
def test_questions_about_the_program(program, slicer):
    def ask(*words):
        process = popen(slicer, program, words)
        return process.stdout.read(), process.wait()

    version, status = ask("--version")
    assert status == 0
    assert re.search(rf"{program}[a-z:\s]+5\.[0-9]+", version)  # MITK's
    assert version.count("\n") == 1
    assert ask() == (f'Use "{program} --help" for information about {program}-usage.\n', 0)
    for flag in ("-h", "--help"):
        text, status = ask(flag)
        assert status == 0
        assert "-threads" in text
    text, status = ask("--extended-version")
    assert "regnet-itk version" in text


@real_programs
@pytest.mark.parametrize("program", ["elastix", "transformix"])
@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["--version"]])
def test_answers_are_like_those_of_the_real_programs(program, words, capfd):
    theirs = subprocess.run([REAL[program], *words], check=False, capture_output=True, text=True)
    assert stand_in([program, *words]) == theirs.returncode
    ours = capfd.readouterr().out

    def first(text):
        return re.sub(r"5\.\d+\.\d+", "5", text.splitlines()[0])

    assert first(ours) == first(theirs.stdout)
    for flag in re.findall(r"(?m)^  (-\w+)", theirs.stdout):
        assert flag in ours or flag == "-priority"


# The same as the real programs


@real_programs
def test_the_same_files_and_the_same_transform_as_elastix(here):
    arguments = ["-f", "f.mha", "-m", "m.mha", "-p", "p.txt", "-p", "p.txt", "-threads", "1"]
    Path("theirs").mkdir()
    subprocess.run([REAL["elastix"], *arguments, "-out", "theirs"], check=True, capture_output=True)
    assert stand_in(["elastix", *arguments, "-out", "out"]) == 0
    assert set(os.listdir("out")) == set(os.listdir("theirs"))
    for number in (0, 1):
        ours, theirs = (read_chain(f"{name}/TransformParameters.{number}.txt") for name in ("out", "theirs"))
        np.testing.assert_allclose(ours.as_matrix().translation, theirs.as_matrix().translation, atol=1e-3)
        images = [sitk.ReadImage(f"{name}/result.{number}.mhd") for name in ("out", "theirs")]
        assert images[0].GetPixelID() == images[1].GetPixelID()
        ours, theirs = (sitk.GetArrayFromImage(image).astype(float) for image in images)
        assert np.abs(ours - theirs).max() <= 1
    for name in ("out", "theirs"):
        Path(f"t-{name}").mkdir()
        words = ["-tp", f"{name}/TransformParameters.1.txt", "-out", f"t-{name}", "-in", "m.mha", "-def", "all",
                 "-jac", "all", "-jacmat", "all", "-threads", "1"]  # fmt: skip
        if name == "out":
            assert stand_in(["transformix", *words]) == 0
        else:
            subprocess.run([REAL["transformix"], *words], check=True, capture_output=True)
    assert set(os.listdir("t-theirs")) <= set(os.listdir("t-out"))
    for image in ("result", "deformationField", "spatialJacobian", "fullSpatialJacobian"):
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(f"{name}/{image}.mhd")) for name in ("t-out", "t-theirs"))
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(float) - theirs).max() <= (1 if image == "result" else 1e-3)


ERRORS = {
    "elastix": {
        "-f none.mha -m m.mha -p p.txt -out out": "fixed image 'none.mha' does not exist",
        "-f f.mha -m none.mha -p p.txt -out out": "moving image 'none.mha' does not exist",
        "-f f.mha -m m.mha -p none.txt -out out": "parameter file 'none.txt' does not exist",
        "-f f.mha -m m.mha -p p.txt -t0 none.txt -out out": "transform file 'none.txt' does not exist",
        "-f f.mha -m m.mha -p odd.txt -out out": "no component 'OddTransform'",
        "-f f.mha -m m.mha -p words.txt -out out": "words.txt, line 1: expected",
        "-f f.mha -m m.mha -out out": 'No CommandLine option "-p" given!',
        "-f f.mha -m m.mha -p p.txt": 'No CommandLine option "-out" given!',
        "-f f.mha -p p.txt -out out": "could not read moving image",
        "-m m.mha -p p.txt -out out": "could not read fixed image",
        "-f f.mha -m m.mha -p p.txt -out f.mha": "",
    },
    "transformix": {
        "-in m.mha -out out": 'No CommandLine option "-tp" given!',
        "-tp t.txt -out out": "At least one of the CommandLine options",
        "-tp t.txt -in m.mha": 'No CommandLine option "-out" given!',
        "-tp none.txt -in m.mha -out out": "transform file 'none.txt' does not exist",
        "-tp t.txt -in none.mha -out out": "'none.mha' does not exist",
    },
}


@real_programs
@pytest.mark.parametrize(("program", "line"), [(program, line) for program, lines in ERRORS.items() for line in lines])
def test_the_same_exit_status_as_the_real_programs_on_errors(program, line, here, capfd):
    Path("odd.txt").write_text(TRANSLATION.replace("TranslationTransform", "OddTransform"), encoding="utf-8")
    Path("words.txt").write_text("hello\n", encoding="utf-8")
    Path("t.txt").write_text(
        '(Transform "TranslationTransform")\n(NumberOfParameters 3)\n(TransformParameters 1 2 3)\n', encoding="utf-8"
    )
    theirs = subprocess.run([REAL[program], *line.split()], check=False, capture_output=True)
    status = stand_in([program, *line.split()])
    printed = capfd.readouterr()
    expected = theirs.returncode if line.split()[-1] != "f.mha" else 1  # they do not see that it is no folder
    assert status == expected
    assert ERRORS[program][line] in printed.out  # Slicer shows only this one
    assert re.search(r"^ERROR: ", printed.out, re.MULTILINE)
    if status == 1 and expected == theirs.returncode and "-out out" in line and "unspecified" not in printed.out:
        assert ERRORS[program][line] in Path(f"out/{program}.log").read_text(encoding="utf-8")
    assert not [file for file in os.listdir("out") if not file.endswith(".log")]


def test_what_elastix_takes_without_a_word_is_refused(here, capfd):
    line = "-f f.mha -m m.mha -p p.txt -out out"
    for more, message in {
        "-fmask x.mha": "there is no option \"-fmask\"; did you mean '-fMask'?",
        "-threads": 'the option "-threads" needs a value',
        "-threads two": "-threads needs a whole number above 0, not 'two'",
        "-f f.mha": 'the option "-f" is given twice',
        "-f2 f.mha": 'the option "-f2" is given, and "-f1" is missing',
        "-loglevel debug": "-loglevel is one of info, warning, error, off, not 'debug'",
    }.items():
        assert stand_in(["elastix", *line.split(), *more.split()]) == 1
        assert f"ERROR: {message}" in capfd.readouterr().out


def test_numbered_images_and_a_new_folder_and_silence(here, capfd):
    line = "-f0 f.mha -m0 m.mha -p p.txt -out new/folder -threads 1 -loglevel error"
    assert stand_in(["elastix", *line.split()]) == 0
    assert capfd.readouterr().out == ""
    assert {"TransformParameters.0.txt", "result.0.mhd", "elastix.log"} <= set(os.listdir("new/folder"))


# The launchers


def call(*arguments):
    return command.call("shim", *arguments)


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "a folder"
    assert call(folder) == 0
    assert str(folder) in capsys.readouterr().out
    assert set(os.listdir(folder)) == {"elastix", "transformix", "parameter_files"}
    assert all(os.access(folder / name, os.X_OK) for name in ("elastix", "transformix"))
    assert call(folder) == 0  # again


def test_a_real_program_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "elastix").write_bytes(b"\x7fELF")
    assert call(tmp_path) == 1
    assert re.search("elastix' exists and is not a launcher.*another folder", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["elastix"]


def test_folders_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(tmp_path / "file") == 1
    assert "cannot write to the output folder" in capsys.readouterr().err
    with pytest.raises(OutputError):
        write_launchers(tmp_path / "file" / "below")
    assert call() == 2


def test_the_variables_of_the_writer_are_kept(tmp_path):
    odd = "it's $HOME"
    elastix, _ = write_launchers(tmp_path, environment={"LD_LIBRARY_PATH": odd})
    script = (
        elastix.read_text(encoding="utf-8")
        .replace(sys.executable, "env")
        .replace('-P -m regnet_itk.cli.shim elastix "$@"', "")
    )
    found = subprocess.run(
        ["sh", "-c", script], env={**os.environ, **SLICER}, check=True, capture_output=True, text=True
    )
    variables = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    assert variables["LD_LIBRARY_PATH"] == odd
    assert not {"PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE"} & set(variables)


def test_launchers_for_windows(tmp_path):
    files = write_launchers(tmp_path, python=r"C:\Program Files\100%\python.exe", windows=True, environment={})
    assert [file.name for file in files] == ["elastix.cmd", "transformix.cmd"]
    lines = files[1].read_bytes().decode().split("\r\n")
    assert r'"C:\Program Files\100%%\python.exe" -P -m regnet_itk.cli.shim transformix %*' in lines
    assert 'set "PYTHONHOME="' in lines
    assert lines[-2] == "exit /b %ERRORLEVEL%"
