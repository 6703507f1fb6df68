"""The names at the root of the package."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import regnet_itk
from regnet_itk.parameters import ParameterMap

HEAVY = ("torch", "itk", "SimpleITK", "numpy", "scipy", "skimage", "matplotlib", "click", "rich")


def test_importing_the_package_loads_nothing_heavy():
    script = f"import regnet_itk, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_images_does_not_load_torch():
    script = "import sys; from regnet_itk import Grid, Image, read_image, read_landmarks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there_and_documented():
    assert "register" in regnet_itk.__all__
    for name in regnet_itk.__all__:
        assert getattr(regnet_itk, name).__doc__
        assert name in dir(regnet_itk)
    assert regnet_itk.ParameterMap is ParameterMap


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="registr"):
        regnet_itk.registr  # noqa: B018


def test_the_version_is_the_one_that_is_installed():
    assert regnet_itk.__version__ == importlib.metadata.version("regnet-itk")
