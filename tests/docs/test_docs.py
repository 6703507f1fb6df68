"""The commands in docs/*.md, and the Python there and in README.md, run as they stand.

Of each block that begins with ```sh the lines ``regnet-itk ..`` are run, and then all blocks that begin with ```python,
page by page, in a folder that holds: fixed.mha, moving.mha, fixed_mask.mha, moving_mask.mha, labels.mha (of the moving
image), lobes.mha, bones.mha and heart.mha (of the fixed one), points.txt (landmarks of the fixed image),
moving_points.txt, pairs.csv (a list of one pair), and run/, the output of a registration by an affine and a RegNet
stage; fixed_nodules.mha and moving_nodules.mha, labels of what lies in the lungs of both; of the same scans as DICOM
also fixed_series/, moving_series/, dose.dcm and structures.dcm. The stage `affine` is a quick one. A block that cannot
run here begins with ```sh no-test or ```python no-test.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import call
from dicom_cases import write_patient
from documents import blocks, run_python

from regnet_itk import parameters
from regnet_itk.anatomy.nodules import add_nodules
from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.parameters import read_parameter_map

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text):
    """Return the calls of regnet-itk in a document, each as its words."""
    lines = "".join(block.code for block in blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("regnet-itk ")]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    nodules = add_nodules(
        make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0)), fates=("grown", "gone", "new")
    )
    phantom = nodules.phantom
    for role in ("fixed", "moving"):
        write_image(nodules.labels(role), folder / f"{role}_nodules.mha")
    write_phantom(phantom, folder)
    write_patient(phantom, folder)
    (folder / "fixed_points.txt").rename(folder / "points.txt")
    lungs = read_image(folder / "moving_mask.mha")
    z = np.arange(lungs.grid.shape[0])[:, None, None]
    labels = np.where(lungs.array > 0, 1 + 2 * z // len(z), 0)  # the lower and the upper half of the lungs
    write_image(Image(labels.astype(np.uint8), lungs.grid), folder / "labels.mha")
    lobes = phantom.fixed_mask.array * (1 + (np.arange(len(phantom.fixed_mask.array)) > 15))[:, None, None]
    write_image(Image(lobes.astype(np.uint8), phantom.fixed.grid), folder / "lobes.mha")
    bones = (phantom.fixed.array > 250).astype(np.uint8)
    write_image(Image(bones, phantom.fixed.grid), folder / "bones.mha")
    heart = np.linalg.norm(phantom.fixed.grid.points() - (15.0, -20.0, -20.0), axis=-1) < 15
    write_image(Image(heart.astype(np.uint8), phantom.fixed.grid), folder / "heart.mha")
    quick = read_parameter_map("affine").with_(
        NumberOfResolutions=1, ImagePyramidSchedule=[4, 4, 4], MaximumNumberOfIterations=60
    )
    (folder / "affine.txt").write_text(quick.to_text())
    (folder / "pairs.csv").write_text("fixed,moving,fixed_mask\nfixed.mha,moving.mha,fixed_mask.mha\n")
    arguments = ("-f", folder / "fixed.mha", "-m", folder / "moving.mha", "-fMask", folder / "fixed_mask.mha")
    stages = ("-p", folder / "affine.txt", "-p", "regnet_multistage")
    assert call("run", *arguments, *stages, "-threads", 1, "-loglevel", "off", "-out", folder / "run") == 0
    return folder


def named(page):
    return page.name


@pytest.fixture
def here(material, tmp_path, monkeypatch):
    shutil.copytree(material, tmp_path / "here")
    quick = (tmp_path / "here" / "affine.txt").rename(tmp_path / "affine.txt")
    shipped = {**parameters.shipped_parameter_files(), "affine": quick}
    monkeypatch.setattr(parameters, "shipped_parameter_files", lambda: shipped)
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page.read_text(encoding="utf-8"))], ids=named)
def test_the_commands_in_the_page_run(page, here, capfd):
    for words in commands(page.read_text(encoding="utf-8")):
        status = call(*words)
        assert status == 0, f"regnet-itk {shlex.join(words)}\n{capfd.readouterr().err}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text("utf-8"), "python")], ids=named)
def test_the_python_in_the_page_runs(page, here):
    run_python(page)


def test_blocks_are_found_and_continued_lines_joined():
    text = "```sh\nregnet-itk run -f a.mha \\\n    -m b.mha  # done\ncd there\n```\n```sh no-test\nregnet-itk x\n```\n"
    assert commands(text) == [["run", "-f", "a.mha", "-m", "b.mha"]]
    assert len(commands((ROOT / "docs" / "warp_and_invert.md").read_text(encoding="utf-8"))) > 8
