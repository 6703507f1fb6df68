"""The program `regnet-itk`: what it takes, prints and writes, and how it fails."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from quick_stages import AFFINE, REGNET

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.cli.main import main
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.networks.model import shipped_models
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.transforms.elastix_reading import read_chain

PROGRAM = Path(sys.executable).with_name("regnet-itk")


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0))


@pytest.fixture(scope="module")
def inputs(phantom, tmp_path_factory):
    """A folder with the phantom, and parameter files that are quick."""
    folder = tmp_path_factory.mktemp("inputs")
    write_phantom(phantom, folder)
    (folder / "affine.txt").write_text(AFFINE.to_text())
    (folder / "affine.toml").write_text(AFFINE.to_toml())
    (folder / "endless.txt").write_text(AFFINE.with_(MaximumNumberOfIterations=1_000_000).to_text())
    (folder / "regnet.txt").write_text(REGNET.to_text())
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """An empty working folder, beside which the inputs lie as `in`."""
    (tmp_path / "in").symlink_to(inputs)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


IMAGES = ("-f", "../in/fixed.mha", "-m", "../in/moving.mha")
POINTS = ("-fp", "../in/fixed_points.txt", "-mp", "../in/moving_points.txt")


def run(*arguments, images=IMAGES, out="out"):
    return call("run", *images, "-out", out, *arguments)


# A good run


def test_all_that_a_run_prints_and_writes(here, phantom, capfd):
    assert run("-p", "../in/affine.txt", "-p", "../in/regnet.txt", *POINTS, "-threads", 1, "--seed", 7, "-priority",
               "belownormal", "--device", "cpu", "-fMask", "../in/fixed_mask.mha", "-mMask", "../in/moving_mask.mha",
               out="new/out") == 0  # fmt: skip
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "\x1b" not in printed.err
    folder = here / "new" / "out"
    assert {file.name for file in folder.iterdir()} == {
        "TransformParameters.0.txt", "TransformParameters.1.txt", "TransformParameters.1-Composite.h5",
        "deformationField.1.mha", "result.0.mha", "result.1.mha", "IterationInfo.0.R0.txt", "IterationInfo.0.R1.txt",
        "registration.json", "registration.png", "regnet-itk.log", "errorMap.1.mha",
    }  # fmt: skip
    summary = json.loads((folder / "registration.json").read_text(encoding="utf-8"))
    assert summary["settings"] == {"threads": 1, "seed": 7, "device": "cpu", "priority": "belownormal"}
    assert summary["stages"][0]["random_seed"] == 7
    errors = [np.linalg.norm(phantom.fixed_landmarks - phantom.moving_landmarks, axis=1)]
    for number in (0, 1):
        chain = read_chain(folder / f"TransformParameters.{number}.txt")
        errors.append(np.linalg.norm(chain.map_points(phantom.fixed_landmarks) - phantom.moving_landmarks, axis=1))
    recorded = [summary["landmarks_before"], *(stage["landmarks"] for stage in summary["stages"])]
    for error, record in zip(errors, recorded, strict=True):
        assert record["mean"] == pytest.approx(error.mean(), abs=1e-4)
        assert record["max"] == pytest.approx(error.max(), abs=1e-4)
        assert record["count"] == len(error)
    lines = [line for line in printed.err.splitlines() if not re.search(r": \d+% ", line)]  # a slow machine tells more
    told = [f"{error.mean():.2f} +- {error.std(ddof=1):.2f} mm" for error in errors]
    assert lines[0].startswith(f"before: TRE {told[0]}")
    assert re.match(rf"stage 0 AffineTransform: \d+\.\d s, TRE {re.escape(told[1])}", lines[1])
    assert re.match(rf"stage 1 RegNet \w+: \d+\.\d s, TRE {re.escape(told[2])}", lines[2])
    assert lines[-1].startswith("written to new/out in ")
    log = (folder / "regnet-itk.log").read_text(encoding="utf-8")
    assert "ELASTIX version" in log
    assert all(re.match(r"\[ *\d+\.\d\d\] ", line) for line in log.splitlines())


def test_toml_parameter_files(here):
    for suffix in ("txt", "toml"):
        assert run("-p", f"../in/affine.{suffix}", "-loglevel", "off", out=suffix) == 0
    text, toml = (read_image(here / suffix / "result.0.mha").array for suffix in ("txt", "toml"))
    np.testing.assert_array_equal(text, toml)


def write_dicom(image, folder):
    folder.mkdir()
    whole = image.to_sitk()
    direction = np.reshape(whole.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(whole.GetDepth()):
        part = whole[:, :, z]
        for tag, value in {
            "0008|0060": "CT", "0020|000e": "1.2.3", "0020|000d": "1.2", "0008|0018": f"1.2.3.{z + 1}",
            "0020|0032": "\\".join(map(str, whole.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "\\".join(map(str, [*direction[:, 0], *direction[:, 1]])),
            "0020|0013": str(z), "0018|0050": str(whole.GetSpacing()[2]),
        }.items():  # fmt: skip
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03}.dcm"))
        writer.Execute(part)


def test_images_of_every_format_and_type(here, phantom):
    """The result of the same voxels is the same, wherever they come from."""
    assert run("-p", "../in/affine.txt", "-loglevel", "off", out="expected") == 0
    expected = read_chain(here / "expected" / "TransformParameters.0.txt").map_points(phantom.fixed_landmarks)
    write_image(phantom.fixed, here / "fixed.nii.gz")
    write_image(phantom.moving, here / "moving.nrrd")
    write_image(Image(phantom.fixed.array.astype(np.float64), phantom.fixed.grid), here / "fixed.mhd")
    write_dicom(phantom.moving, here / "moving_ct")
    for fixed, moving in (("fixed.nii.gz", "moving.nrrd"), ("fixed.mhd", "moving_ct")):
        assert (
            run("-p", "../in/affine.txt", "-loglevel", "off", images=("-f", fixed, "-m", moving), out=f"of-{moving}")
            == 0
        )
        found = read_chain(here / f"of-{moving}/TransformParameters.0.txt").map_points(phantom.fixed_landmarks)
        assert np.abs(found - expected).max() < 0.05
    for image, name in ((phantom.fixed, "fixed8.nrrd"), (phantom.moving, "moving8.mha")):
        write_image(Image(np.clip(image.array / 8 + 128, 0, 255).astype(np.uint8), image.grid), here / name)
    grey = ("-f", "fixed8.nrrd", "-m", "moving8.mha")
    assert run("-p", "../in/affine.txt", "-loglevel", "off", images=grey, out="grey") == 0
    found = read_chain(here / "grey/TransformParameters.0.txt").map_points(phantom.fixed_landmarks)
    assert np.abs(found - expected).mean() < 3


def test_where_to_start(here):
    assert run("-p", "../in/affine.txt", *POINTS, "-loglevel", "off", out="first") == 0
    before = json.loads((here / "first/registration.json").read_text(encoding="utf-8"))["stages"][0]["landmarks"][
        "mean"
    ]
    for number, start in enumerate(("TransformParameters.0.txt", "TransformParameters.0-Composite.h5")):
        assert run("-p", "../in/regnet.txt", "-t0", f"first/{start}", *POINTS, "-loglevel", "off", out=number) == 0
        summary = json.loads((here / str(number) / "registration.json").read_text(encoding="utf-8"))
        assert summary["landmarks_before"]["mean"] == pytest.approx(before, abs=1e-3)
        assert {"InitialTransform.0.txt", "TransformParameters.0.txt"} <= set(os.listdir(here / str(number)))


@pytest.mark.parametrize(("level", "warned"), [("info", True), ("warning", True), ("error", False), ("off", False)])
def test_what_is_shown_at_each_log_level(level, warned, here, capfd):
    (here / "odd.txt").write_text(REGNET.with_(MyOwnRemark="hello", WriteResultImage=False).to_text())
    assert run("-p", "odd.txt", "-loglevel", level) == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert ("does not know the key 'MyOwnRemark'" in printed.err) == warned
    assert bool(printed.err) == warned
    assert ("written to" in printed.err) == (level == "info")


def test_a_bar_on_a_terminal(here):
    leader, follower = pty.openpty()
    command = [PROGRAM, "run", *IMAGES, "-out", "out", "-p", "../in/affine.txt"]
    process = subprocess.Popen(list(map(str, command)), stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the end, on Linux
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert process.wait() == 0
    text = shown.decode()
    assert "0 AffineTransform" in text
    shares = [int(share) for share in re.findall(r"(\d+)%", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text))]
    assert 100 in shares


# Bad input: one clear line, a status, nothing written


def fails(capfd, message, *arguments, status=1, out=None, **more):
    """Expect a failing run: one line that matches, the status, and no output folder."""
    capfd.readouterr()
    found = run(*arguments, **more)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"regnet-itk: error: .*{message}.*\n", printed.err), printed.err
    assert found == status
    assert not Path("out").exists()


@pytest.fixture
def elastix_forbidden(monkeypatch):
    """Whatever is refused must be refused before elastix starts."""

    def started(*_):
        raise AssertionError("elastix was started")

    monkeypatch.setattr(ElastixStage, "run", started)


@pytest.mark.usefixtures("here", "elastix_forbidden")
class TestBadInput:
    def test_images(self, capfd, phantom):
        grid = phantom.fixed.grid
        array = phantom.fixed.array.astype(np.float32)
        array[2, 2, 2] = np.nan
        write_image(Image(array, grid), "nan.mha")
        write_image(Image(np.full(grid.shape, 40, np.int16), grid), "constant.nii.gz")
        sitk.WriteImage(sitk.Image([9, 9], sitk.sitkInt16), "flat.mha")
        sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 3), "vectors.mha")
        Path("text.nrrd").write_text("hello", encoding="utf-8")
        Path("folder").mkdir()
        for suffix in ("mha", "nii", "nii.gz", "nrrd"):
            write_image(phantom.fixed, f"whole.{suffix}")
            content = Path(f"whole.{suffix}").read_bytes()
            Path(f"cut.{suffix}").write_bytes(content[: len(content) * 2 // 3])
        messages = {
            "none.mha": "fixed image 'none.mha' does not exist",
            "text.nrrd": "fixed image 'text.nrrd' cannot be read",
            "folder": "fixed image 'folder' is a folder without a DICOM series",
            "flat.mha": "the moving image has 3 dimensions and the fixed image 2",
            "vectors.mha": "'vectors.mha' has 3 components",
            "nan.mha": "fixed image has 1 voxels that are NaN",
            "constant.nii.gz": r"fixed image is constant \(every voxel is 40\)",
            "cut.mha": "'cut.mha' is cut off",
            "cut.nii": "'cut.nii' is cut off",
            "cut.nii.gz": "'cut.nii.gz' is cut off",
            "cut.nrrd": "'cut.nrrd' cannot be read",
        }
        for name, message in messages.items():
            fails(capfd, message, images=("-f", name, "-m", "../in/moving.mha"))
        fails(capfd, "moving image 'none.mha' does not exist", images=("-f", "../in/fixed.mha", "-m", "none.mha"))

    def test_masks(self, capfd, phantom):
        write_image(Image(np.zeros(phantom.fixed.grid.shape, np.uint8), phantom.fixed.grid), "empty.mha")
        fails(capfd, "fixed mask is empty", "-fMask", "empty.mha")
        fails(capfd, "fixed mask lies on another grid", "-fMask", "../in/moving_mask.mha")
        fails(capfd, "moving mask 'none.mha' does not exist", "-mMask", "none.mha")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-fmask", "x"], "no option '-fmask'; did you mean '-fMask'"),
            (["-mmask", "x"], "no option '-mmask'; did you mean '-mMask'"),
            (["-fx"], "no option '-fx'; did you mean"),
            (["--sed", "1"], "no option '--sed'; did you mean '--seed'"),
            (["--device=cpu", "--divice=cpu"], "no option '--divice'; did you mean '--device'"),
            (["-thread", "1"], "no option '-thread'; did you mean '-threads'"),
            (["-threads", "0"], "'-threads'"),
            (["-threads", "two"], "'-threads'"),
            (["--seed", "-1"], "'--seed'"),
            (["-priority", "low"], "'-priority'.*'belownormal'"),
            (["-loglevel", "debug"], "'-loglevel'.*'warning'"),
            (["-p"], "'-p' requires an argument"),
            (["stray"], "[Uu]nexpected extra argument.*stray"),
        ],
    )
    def test_flags(self, arguments, message, capfd):
        fails(capfd, message, *arguments, status=2)

    def test_missing_flags(self, capfd):
        fails(capfd, "Missing option '-m'", images=("-f", "x.mha"), status=2)
        assert call("run", *IMAGES) == 2
        assert "Missing option '-out'" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"Registration": "RegNetRegistraton"}, "no Registration 'RegNetRegistraton'; did you mean 'RegNetReg"),
            ({"RegNetModle": "regnet"}, "no key 'RegNetModle'; did you mean 'RegNetModel'"),
            ({"RegNetRegion": "lung"}, "'RegNetRegion' must be auto, mask, lungs, body, foreground or all"),
            ({"RegNetRegion": "mask"}, "needs -fMask or -mMask"),
            ({"RegNetModel": "regnet_multi"}, "no model 'regnet_multi'.*did you mean 'regnet_multistage'"),
            ({"RegNetModel": "gone.safetensors"}, "no model 'gone.safetensors'"),
            ({"RegNetModel": "cut.safetensors"}, "cut.safetensors' is damaged"),
            ({"RegNetModel": "other.safetensors"}, "other.safetensors' was altered: its description"),
            ({"RegNetModel": "foreign.safetensors"}, "foreign.safetensors' was not written by regnet-itk"),
            ({"ResultImageFormat": "jpg2"}, "no ResultImageFormat 'jpg2'"),
        ],
    )
    def test_regnet_stages(self, change, message, capfd):
        from safetensors import safe_open
        from safetensors.torch import save_file

        weights = shipped_models()["regnet_multistage"]
        Path("cut.safetensors").write_bytes(weights.read_bytes()[:5000])
        with safe_open(weights, framework="pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        other = {**metadata, "description": metadata["description"].replace('"coarse_to_fine"', '"regnet"')}
        save_file(tensors, "other.safetensors", metadata=other)
        save_file(tensors, "foreign.safetensors")
        Path("stage.txt").write_text(REGNET.with_(change).to_text(), encoding="utf-8")
        fails(capfd, message, "-p", "../in/affine.txt", "-p", "stage.txt")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('(Transform "AffineTransform"', "line 1: expected"),
            ("", "is empty"),
            (
                '(Transform "AffineTransform")\n(FixedImageDimension 2)',
                "'FixedImageDimension' is 2, and the images are",
            ),
            ('(Transform "AffineTransform")\n(RegNetModel "regnet")', "needs .Registration .RegNetRegistration"),
        ],
    )
    def test_elastix_stages(self, text, message, capfd):
        Path("stage.txt").write_text(text, encoding="utf-8")
        fails(capfd, message, "-p", "../in/affine.txt", "-p", "stage.txt")

    def test_stages_that_do_not_exist(self, capfd):
        fails(capfd, "'afine' does not exist; did you mean 'affine'", "-p", "afine")
        fails(capfd, "'none.txt' does not exist", "-p", "none.txt")
        Path("bad.toml").write_text("Transform = \n", encoding="utf-8")
        fails(capfd, "bad.toml is not valid TOML", "-p", "bad.toml")

    def test_landmarks(self, capfd, phantom):
        good, bad = "../in/fixed_points.txt", "../in/moving_points.txt"
        fails(capfd, "both images .-fp and -mp.", "-fp", good)
        fails(capfd, "both images .-fp and -mp.", "-mp", bad)
        Path("short.txt").write_text("point\n1\n0 0 0\n", encoding="utf-8")
        fails(capfd, "and 1 moving landmarks; they must correspond", "-fp", good, "-mp", "short.txt")
        Path("far.txt").write_text("point\n1\n900 0 0\n", encoding="utf-8")
        fails(capfd, "1 of 1 moving landmarks lie outside", "-fp", "short.txt", "-mp", "far.txt")
        Path("broken.txt").write_text("point\n2\n0 0 0\n", encoding="utf-8")
        fails(capfd, "2 points are announced and 1 follow", "-fp", "broken.txt", "-mp", bad)
        fails(capfd, "'none.csv' does not exist", "-fp", "none.csv", "-mp", bad)

    def test_where_to_start(self, capfd):
        fails(capfd, "'none.txt' does not exist", "-t0", "none.txt")
        Path("cut.txt").write_text(
            '(Transform "AffineTransform")\n(NumberOfParameters 12)\n(TransformParameters 1 2)\n', encoding="utf-8"
        )
        fails(capfd, "has 12 parameters here.*may be cut off", "-t0", "cut.txt")
        Path("bad.h5").write_bytes(b"no HDF5")
        fails(capfd, "'bad.h5' cannot be read", "-t0", "bad.h5")

    def test_devices(self, capfd):
        import torch

        fails(capfd, "unknown device 'gpu'; use auto, cpu, cuda", "--device", "gpu")
        fails(capfd, "unknown device 'gpu'", "-p", "../in/affine.txt", "--device", "gpu")
        device = "cuda:99" if torch.cuda.is_available() else "cuda"
        fails(capfd, f"no CUDA device '{device}' here; use --device auto or cpu", "--device", device)

    def test_output_folders(self, capfd, tmp_path):
        Path("file").write_text("", encoding="utf-8")
        for out in ("file", "file/below"):
            assert run(out=out) == 1
            assert re.fullmatch(r"regnet-itk: error: cannot write .*/file' is a file\n", capfd.readouterr().err)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_an_output_folder_without_permission(here, capfd):
    here.chmod(0o500)
    try:
        assert run("-p", "../in/affine.txt") == 1
        assert "no permission" in capfd.readouterr().err
    finally:
        here.chmod(0o700)


def test_images_that_do_not_overlap(here, phantom, capfd):
    shifted = phantom.moving.to_sitk()
    shifted.SetOrigin((3000.0, 0.0, 0.0))
    sitk.WriteImage(shifted, "far.mha")
    images = ("-f", "../in/fixed.mha", "-m", "far.mha")
    alone = AFFINE.with_(AutomaticTransformInitialization=False).without("RegNetStart")
    Path("local.txt").write_text(alone.to_text(), encoding="utf-8")
    fails(capfd, "do not overlap", "-p", "local.txt", images=images)
    fails(capfd, "do not overlap", "-p", "../in/regnet.txt", images=images)


@pytest.mark.usefixtures("here")
def test_a_disk_that_fills_up(capfd, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("sitk::ERROR: Write: Error writing\nReason: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    fails(capfd, "No space left on device", "-p", "../in/regnet.txt", "-loglevel", "off")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("oh"), ZeroDivisionError),
        (EOFError("oh"), RuntimeError),  # which click would take for an interruption
    ],
)
def test_a_mistake_of_ours_is_one_line_too(error, told, capfd, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("regnet_itk.registration.Images.read", broken)
    fails(capfd, f"internal error, please report it: {told.__name__}: .*oh .*REGNET_ITK_TRACEBACK=1")
    monkeypatch.setenv("REGNET_ITK_TRACEBACK", "1")
    with pytest.raises(told):
        main(["run", *IMAGES, "-out", "out"])


# Signals


def children_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()


def runs(number):
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [(signal.SIGINT, 130, "regnet-itk: error: interrupted; nothing was written\n"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_ends_elastix_and_leaves_nothing(sent, status, line, here, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [str(PROGRAM), "run", *IMAGES, "-out", "out", "-p", "../in/endless.txt"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(temporary.glob("*/output/IterationInfo*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        children = children_of(process)
        assert len(children) == 1
        process.send_signal(sent)
        _, printed = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert printed.endswith(line)
    assert "Traceback" not in printed
    deadline = time.monotonic() + 10
    while any(map(runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, children))
    assert os.listdir(here) == []
    assert os.listdir(temporary) == []


# The program as a whole


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["example", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    script = (
        "import sys\nfrom regnet_itk.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = [m for m in ('torch', 'itk', 'SimpleITK', 'numpy', 'scipy') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout
    assert done.stderr == ""


def test_without_arguments_there_is_help(capfd):
    assert call() == 0
    assert "Commands:" in capfd.readouterr().out


@pytest.mark.parametrize(("word", "near"), [("rum", "; did you mean 'run'?"), ("exampel", "; did you mean 'example'?")])
def test_an_unknown_command(word, near, capfd):
    assert call(word) == 2
    assert capfd.readouterr().err == f"regnet-itk: error: there is no command '{word}'{near} (see regnet-itk --help)\n"


def test_the_help_of_run_names_every_flag(capfd):
    assert call("run", "--help") == 0
    text = capfd.readouterr().out
    flags = "-f -m -out -p -fMask -mMask -t0 -fp -mp -threads -priority -loglevel --device --seed"
    for flag in flags.split():
        assert re.search(rf"^  {flag}\b", text, re.MULTILINE), flag


def test_the_example(here, capfd, monkeypatch):
    small = make_phantom(0, spacing=(3.9, 3.6, 4.4), extent=(180.0, 150.0, 140.0))
    monkeypatch.setattr("regnet_itk.anatomy.phantom.make_phantom", lambda seed: small)
    monkeypatch.setattr("regnet_itk.stages.choice.CHEST_CT_STAGES", ("../in/affine.txt", "../in/regnet.txt"))
    assert call("example", "demo") == 0
    printed = capfd.readouterr()
    table = [line for line in printed.out.splitlines() if "+-" in line]
    assert [line.split("  ")[0] for line in table[1:]] == [
        "before",
        "after AffineTransform",
        "after RegNet regnet_multistage",
    ]
    means = [float(re.search(r"([\d.]+) \+-", line)[1]) for line in table[1:]]
    assert means[2] < means[1] < means[0]
    assert "demo/registration/registration.png" in printed.out
    assert {"fixed.mha", "moving.mha", "fixed_points.txt", "true_displacement.mha"} <= set(os.listdir("demo"))
    assert Path("demo/registration/registration.png").is_file()


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "5000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, ""), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_the_program_makes_waiting_threads_sleep_before_torch_is_there(given, expected):
    program = (
        "import os, sys\n"
        "from regnet_itk.cli.main import main\n"
        "assert 'torch' not in sys.modules\n"
        "try: main(['--version'])\n"
        "finally: print(os.environ.get('GOMP_SPINCOUNT', ''))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment | given, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == expected
