"""The scripts that users copy run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.image_files import read_image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("example")
    write_phantom(make_phantom(4, spacing=(4.0, 3.8, 4.4), extent=(300.0, 230.0, 240.0)), base)
    return base


@pytest.fixture(scope="module")
def registered(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    return out, run("register_in_python.py", folder, out)


@pytest.mark.slow
def test_register_in_python(registered):
    out, printed = registered
    before, after = (float(re.search(rf"{name}.*error.* ([\d.]+) mm", printed)[1]) for name in ("land", "RegNet"))
    assert after < 0.5 * before
    assert "RegNet regnet_multistage" in printed
    assert (out / "TransformParameters.1-Composite.h5").is_file()


@pytest.mark.slow
def test_use_the_result(registered, folder, tmp_path):
    printed = run("use_the_result.py", registered[0], folder / "moving.mha", tmp_path)
    assert "->" in printed
    images = [read_image(tmp_path / f"with_{name}.mha").array for name in ("simpleitk", "itk", "transformix")]
    inside = ndimage.binary_erosion(np.logical_and.reduce([image > -999 for image in images]), iterations=2)
    assert inside.mean() > 0.2
    for other in images[1:]:
        assert np.abs(other - images[0])[inside].max() < 1e-2


@pytest.mark.slow
def test_elastix_style(folder, tmp_path):
    printed = run("elastix_style.py", folder, tmp_path)
    assert "100%" in printed
    ours, theirs = (read_image(tmp_path / f"{name}.mha").array for name in ("result", "transformix"))
    assert np.percentile(np.abs(ours - theirs), 90) < 1e-2  # the border of the moving image lies within


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{script.name}"' in tested for script in EXAMPLES.glob("*.py"))
