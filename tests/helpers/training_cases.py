"""What the tests of training share: small images, made once, and the scripts of the pipelines."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def load_pipeline(name: str) -> ModuleType:
    """Import a script of the pipelines, which may import another one."""
    if str(PIPELINES) not in sys.path:
        sys.path.append(str(PIPELINES))
    return importlib.import_module(name)


@cache
def chests() -> tuple[Image, Image]:
    """Two small chests with lungs, breathed out and breathed in, on oblique grids."""
    phantom = make_phantom(1, spacing=(6.0, 6.0, 6.0), extent=(220.0, 190.0, 170.0), noise=10.0)
    return phantom.fixed, phantom.moving


def write_chests(folder: Path, *names: str) -> Path:
    """Write them into a folder under these file names, and return it."""
    for image, name in zip(chests(), names, strict=False):
        write_image(image, folder / name)
    return folder
