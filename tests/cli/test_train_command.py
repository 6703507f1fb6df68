"""``regnet-itk train``: from a folder of images to a model, stopped and continued, by one process or two."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from scipy import ndimage
from training_cases import chests, write_chests

from regnet_itk.cli.main import main
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import ParameterError
from regnet_itk.networks.general import GeneralRegNet
from regnet_itk.networks.model import ModelDescription, load_model, save_model
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.training.checkpoints import Checkpoint
from regnet_itk.training.log import TrainingLog

TINY = """
network = "coarse_to_fine"
name = "tiny"
validate_every = 2
checkpoint_every = 2
[[phases]]
steps = STEPS
block_size = 16
recurrence = 0.5
fields = { sigma = [8.0, 12.0], theta = [2.0, 3.0], sliding = 0.5, sliding_share = 0.5 }
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_chests(folder, "patient0.mha", "patient1.mha")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(steps=4):
    Path("tiny.toml").write_text(TINY.replace("STEPS", str(steps)), encoding="utf-8")
    return "tiny.toml"


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, arguments)])
    return caught.value.code


def error_of(capsys, *arguments, status=1):
    assert run(*arguments) == status
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "\n".join(lines)
    assert lines[-1].startswith("regnet-itk: error: ")
    return lines[-1]


def test_a_folder_of_images_becomes_a_model(images, here, capsys):
    assert run(images, "-out", "run", "-c", configuration(), "-threads", 1, "--device", "cpu") == 0
    printed = capsys.readouterr().err
    assert "training on 1 image(s), judged by patient" in printed
    assert "step 2 (phase 0" in printed
    model = load_model("run/tiny.safetensors")
    recipe = model.description.training["recipe"]
    assert sorted([*recipe["train"], *recipe["validation"]]) == ["patient0", "patient1"]
    assert [row.step for row in TrainingLog(Path("run")).rows()] == [2, 4]
    assert Path("run/log.png").stat().st_size > 5000
    # another model begins with its weights
    assert run(images, "-out", "more", "-c", configuration(1), "--from", "run/tiny.safetensors", "-threads", 1) == 0
    card = load_model("more/tiny.safetensors").description.training
    assert card["started_from"]["sha256"] == model.digest
    assert card["started_from"]["steps"] == 4
    near = [
        float((a - b).abs().max())
        for a, b in zip(
            load_file("run/tiny.safetensors").values(), load_file("more/tiny.safetensors").values(), strict=True
        )
    ]
    assert 0 < max(near) < 0.02  # one step away


def test_the_images_to_judge_by_can_be_named(images, here, capsys):
    assert run(images, "-out", "run", "-c", configuration(2), "--validation", "patient0", "-threads", 1) == 0
    assert "judged by patient0\n" in capsys.readouterr().err
    # the folder cannot be another network's as well
    Path("other.toml").write_text('network = "regnet"\n[[phases]]\nsteps = 1\nblock_size = 2\n', encoding="utf-8")
    line = error_of(capsys, images, "-out", "run", "-c", "other.toml", "-threads", 1, "--validation", "patient0")
    assert "is of the network 'coarse_to_fine', not 'regnet'; train in another folder" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interruption_leaves_a_checkpoint_to_continue_from(images, here, capsys, sent, status):
    arguments = [str(images), "-out", "run", "-c", configuration(100000), "-threads", "1", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "regnet_itk.cli.main", "train", *arguments], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not Path("run/checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(sent)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    assert "interrupted after step" in printed
    assert "the same command continues" in printed
    assert "Traceback" not in printed
    step = int(printed.rpartition("interrupted after step ")[2].split(";")[0])
    assert run(images, "-out", "run", "-c", configuration(step + 1), "-threads", 1, "--device", "cpu") == 0
    assert "continuing from the checkpoint" in capsys.readouterr().err
    assert load_model("run/tiny.safetensors").description.training["steps"] == step + 1


def test_two_processes_train_one_network(images, here):
    """Both give blocks; the model is that of neither alone."""
    command = [str(images), "-c", configuration(2), "-threads", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517",
         "-m", "regnet_itk.cli.main", "train", *command, "-out", "both"],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr[-3000:]
    assert "2 process(es)" in load_model("both/tiny.safetensors").description.training["machine"]
    assert run(*command, "-out", "one") == 0
    two, one = (load_file(f"{name}/tiny.safetensors") for name in ("both", "one"))
    assert any(not torch.equal(two[name], one[name]) for name in one)
    state = torch.load("both/checkpoint.pt", weights_only=True)
    assert len(state["random"]) == 2
    assert not torch.equal(state["random"][0][0], state["random"][1][0])


def test_bad_input_is_told_in_one_line(images, here, capsys):
    config = configuration(1)
    Path("empty").mkdir()
    assert "there is no image in 'empty'" in error_of(capsys, "empty", "-out", "run", "-c", config)
    assert "there is no image in 'missing'" in error_of(capsys, "missing", "-out", "run", "-c", config)
    assert "did you mean 'regnet'?" in error_of(capsys, images, "-out", "run", "-c", "regnett")
    Path("wrong.toml").write_text(TINY.replace("STEPS", "1").replace("recurrence", "recurence"), encoding="utf-8")
    assert "did you mean 'recurrence'?" in error_of(capsys, images, "-out", "run", "-c", "wrong.toml")
    line = error_of(capsys, images, "-out", "run", "-c", config, "--validation", "patient9")
    assert "'patient9' is not in" in line
    assert "did you mean 'patient" in line
    Path("twice.toml").write_text(TINY.replace("STEPS", "1\nepochs = 2"), encoding="utf-8")
    assert "either 'steps' or 'epochs'" in error_of(capsys, images, "-out", "run", "-c", "twice.toml")
    Path("other.toml").write_text(TINY.replace("STEPS", "1").replace("coarse_to_fine", "regnet"), encoding="utf-8")
    assert "'recurrence' is of networks that predict at every voxel" in error_of(
        capsys, images, "-out", "run", "-c", "other.toml"
    )
    Path("masks").mkdir()
    assert "there is no mask 'patient" in error_of(capsys, images, "-out", "run", "-c", config, "--masks", "masks")
    assert "no model 'nothing'" in error_of(capsys, images, "-out", "run", "-c", config, "--from", "nothing")
    assert "but the configuration trains 'coarse_to_fine'" in error_of(
        capsys, images, "-out", "run", "-c", config, "--from", "regnet"
    )
    assert "did you mean '--validation'?" in error_of(capsys, images, "-out", "r", "--validations", "a", status=2)
    Path("file").write_text("", encoding="utf-8")
    assert "is a file" in error_of(capsys, images, "-out", "file", "-c", config)
    assert not list(Path("run").glob("*.safetensors"))


def half(path):
    """Write a part of a file, as far as the disk goes."""
    Path(path).write_text("half", encoding="utf-8")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full_disk(monkeypatch):
    """Let the disk be full from the n-th time on that a file of this name is written, as long as the context lasts."""

    @contextmanager
    def filled(name, after):
        times = iter(range(100))

        def full_for(write):
            def writing(*arguments, **keywords):
                path = next((a for a in arguments if isinstance(a, str | Path)), None)
                if path is not None and Path(path).name == name and next(times) >= after:
                    half(path)
                return write(*arguments, **keywords)

            return writing

        with monkeypatch.context() as patch:
            for owner, function in ((torch, "save"), (np, "save"), (Path, "write_bytes"), (Figure, "savefig")):
                patch.setattr(owner, function, full_for(getattr(owner, function)))
            yield

    return filled


@pytest.mark.parametrize(
    ("name", "after", "left"),
    [
        ("values.npy", 1, 0),  # of the second image
        ("log.csv", 1, 1),
        ("log.png", 0, 2),
        ("checkpoint.pt", 1, 2),
        ("tiny.safetensors", 0, 2),
    ],
)
def test_a_disk_that_fills_up_leaves_whole_files_and_training_goes_on_later(
    name, after, left, images, here, capsys, full_disk
):
    command = [images, "-out", "run", "-c", configuration(4), "-threads", 1, "--device", "cpu"]
    with full_disk(name, after):
        line = error_of(capsys, *command)
    where = Path("run").resolve()
    assert re.fullmatch(rf"regnet-itk: error: cannot write '({where}|run)/.*': No space left on device", line)
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert not [path for path in files if ".part-" in str(path) or path.read_bytes() == b"half"]
    assert len(TrainingLog(Path("run")).rows()) == left
    if name == "checkpoint.pt":
        assert Checkpoint.read(Path("run/checkpoint.pt"), "coarse_to_fine").step == 2
    assert not Path("run/tiny.safetensors").exists()
    assert run(*command) == 0  # there is room again
    assert ("continuing" in capsys.readouterr().err) == (left > 0)
    assert [row.step for row in TrainingLog(Path("run")).rows()] == [2, 4]
    assert load_model("run/tiny.safetensors").description.training["steps"] == 4


def test_images_that_cannot_be_trained_on(here, capsys):
    config = configuration(1)
    good = chests()[0]
    for name, bad, words in (
        ("flat", Image(np.full((40, 40, 40), 40.0, dtype=np.float32), Grid((40, 40, 40), (6.0,) * 3)), "no lung"),
        ("slice", Image(good.array[10:11], Grid((*good.grid.size[:2], 1), (6.0,) * 3)), "along each axis"),
        ("thin", Image(good.array[10:16], Grid((*good.grid.size[:2], 6), (6.0,) * 3)), "along each axis|no lung"),
    ):
        folder = Path(name)
        folder.mkdir()
        write_image(good, folder / "a.mha")
        write_image(bad, folder / "b.mha")
        line = error_of(capsys, folder, "-out", "run", "-c", config, "--validation", "a")
        assert any(word in line for word in words.split("|"))
        assert "b.mha" in line
    flat = Path("flat") / "b.mha"
    sitk.WriteImage(sitk.Image(64, 64, sitk.sitkFloat32), str(flat))
    line = error_of(capsys, "flat", "-out", "run", "-c", config, "--validation", "a")
    assert "b.mha" in line
    assert "has 2 dimensions" in line
    only = Path("only")
    only.mkdir()
    write_image(good, only / "a.mha")
    assert "holds 1 image(s) to use; at least one is needed to train on and one" in error_of(
        capsys, only, "-out", "run", "-c", config
    )


def test_a_general_model_goes_on_with_the_recipe_for_images_of_any_kind(here, capsys, monkeypatch):
    """No lungs, no Hounsfield units, no recipe named: what counts is the model that training begins with."""
    asked = []

    def stop_before_training(trainer, config, *others):
        asked.append(config)
        raise ParameterError("far enough")

    monkeypatch.setattr("regnet_itk.training.loop.Trainer.__init__", stop_before_training)
    save_model(GeneralRegNet(), ModelDescription("any", "general", 2.0, CHEST_CT, 30.0), "general.safetensors")
    Path("blobs").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        values = ndimage.gaussian_filter(rng.normal(size=(30, 30, 30)), 2.0).astype(np.float32)
        write_image(Image(values, Grid((30, 30, 30), (2.0, 2.5, 3.0))), Path("blobs") / f"{name}.mha")
    assert "far enough" in error_of(capsys, "blobs", "-out", "run", "--from", "general.safetensors")
    assert "far enough" in error_of(capsys, "blobs", "-out", "run")
    first, second = asked
    assert (first.network, second.network) == ("general", "coarse_to_fine")
    assert (len(first.train), len(first.validation)) == (2, 1)
