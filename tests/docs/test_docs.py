"""The commands in docs/*.md run as they stand.

Of each block that begins with ```sh the lines ``regnet-itk ..`` are run, file by file, in a folder that holds:
fixed.mha, moving.mha, fixed_mask.mha, moving_mask.mha, labels.mha (of the moving image), points.txt (landmarks of the
fixed image), moving_points.txt, and run/, the output of a registration by an affine and a RegNet stage. A block that
cannot run here begins with ```sh no-test.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import call

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.parameters import read_parameter_map

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text):
    """Return the calls of regnet-itk in a document, each as its words."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("regnet-itk ")]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    write_phantom(make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0)), folder)
    (folder / "fixed_points.txt").rename(folder / "points.txt")
    lungs = read_image(folder / "moving_mask.mha")
    z = np.arange(lungs.grid.shape[0])[:, None, None]
    labels = np.where(lungs.array > 0, 1 + 2 * z // len(z), 0)  # the lower and the upper half of the lungs
    write_image(Image(labels.astype(np.uint8), lungs.grid), folder / "labels.mha")
    quick = read_parameter_map("affine").with_(
        NumberOfResolutions=1, ImagePyramidSchedule=[4, 4, 4], MaximumNumberOfIterations=60
    )
    (folder / "affine.txt").write_text(quick.to_text())
    arguments = ("-f", folder / "fixed.mha", "-m", folder / "moving.mha", "-fMask", folder / "fixed_mask.mha")
    stages = ("-p", folder / "affine.txt", "-p", "regnet_multistage")
    assert call("run", *arguments, *stages, "-threads", 1, "-loglevel", "off", "-out", folder / "run") == 0
    (folder / "affine.txt").unlink()
    return folder


@pytest.mark.parametrize("document", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_the_commands_in_the_document_run(document, material, tmp_path, monkeypatch, capfd):
    found = commands(document.read_text(encoding="utf-8"))
    if not found:
        pytest.skip("no command to run")
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for words in found:
        status = call(*words)
        assert status == 0, f"regnet-itk {shlex.join(words)}\n{capfd.readouterr().err}"


def test_blocks_are_found_and_continued_lines_joined():
    text = "```sh\nregnet-itk run -f a.mha \\\n    -m b.mha  # done\ncd there\n```\n```sh no-test\nregnet-itk x\n```\n"
    assert commands(text) == [["run", "-f", "a.mha", "-m", "b.mha"]]
    assert len(commands((DOCS / "warp_and_invert.md").read_text(encoding="utf-8"))) > 8
