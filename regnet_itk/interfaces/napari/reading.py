"""What napari opens with this plugin: images with their place in space, landmarks, folders of finished runs, DICOM."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.data.suffixes import IMAGE_SUFFIXES, known_suffix, without_suffix
from regnet_itk.inputs import is_file
from regnet_itk.interfaces.napari.layers import FILE, LayerData, image_layer, landmarks_layer
from regnet_itk.interfaces.napari.results import describe_run, input_layers, result_layers
from regnet_itk.report.finished_run import read_finished_run
from regnet_itk.result_files import RECORD

LANDMARK_SUFFIXES = (".fcsv", ".mrk.json", ".pts")
"""Of landmarks alone; .txt, .csv and .vtk files may be anything, and are opened from the widget."""

_LOOKED_AT = 20  # files of a folder, for one of DICOM
_DICOM_MARK, _DICOM_MARK_AT = b"DICM", 128

Reader = Callable[[str | list[str]], list[LayerData]]


def get_reader(path: str | list[str]) -> Reader | None:
    """Return what reads a file or a folder, or None if it is nothing of ours; napari calls it.

    Parameters
    ----------
    path : str or list of str
        Several are read one by one.

    Examples
    --------
    >>> get_reader("notes.docx") is None
    True
    """
    paths = [path] if isinstance(path, str) else path
    return _read_all if all(_is_ours(Path(each)) for each in paths) else None


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return is_file(path / RECORD) or _holds_dicom(path)
    if path.name == RECORD:  # of a folder, napari asks who is to read it; of this file, it need not
        return True
    return bool(known_suffix(path, (*IMAGE_SUFFIXES, *LANDMARK_SUFFIXES)))


def _holds_dicom(folder: Path) -> bool:
    """Say whether one of the first files of a folder is DICOM's; which series there is, the reader sees."""
    try:
        with os.scandir(folder) as entries:
            for entry in islice((entry for entry in entries if entry.is_file()), _LOOKED_AT):
                with open(entry.path, "rb") as file:
                    file.seek(_DICOM_MARK_AT)
                    if file.read(len(_DICOM_MARK)) == _DICOM_MARK:
                        return True
    except OSError:
        pass
    return False


def _read_all(path: str | list[str]) -> list[LayerData]:
    paths = [path] if isinstance(path, str) else path
    return [layer for each in paths for layer in _read(Path(each))]


def _read(path: Path) -> list[LayerData]:
    if path.name == RECORD:
        return read_run(path.parent)
    if path.is_dir() and is_file(path / RECORD):
        return read_run(path)
    if known_suffix(path, LANDMARK_SUFFIXES):
        return [landmarks_layer(read_landmarks(path), without_suffix(path, LANDMARK_SUFFIXES))]
    return [read_image_layer(path, without_suffix(path))]


def read_image_layer(path: Path, name: str, **settings: object) -> LayerData:
    """Read an image, or a folder with a DICOM series, as a layer that remembers where it was read.

    Raises
    ------
    ImageError
        If it cannot be read, or is no scalar 3D image.
    """
    return image_layer(read_image(path), name, metadata={FILE: str(path.resolve())}, **settings)


def read_run(folder: Path) -> list[LayerData]:
    """Read the folder of a finished run: what was registered, and what was found.

    Raises
    ------
    RegNetItkError
        If it holds none, or its images are no longer there.
    """
    run = read_finished_run(folder)
    layers = [*input_layers(run), *result_layers(run)]
    with suppress(ImportError):  # without napari, nobody is there to be told
        from napari.utils.notifications import show_info, show_warning

        for warning in run.warnings:
            show_warning(warning)
        show_info(describe_run(run))
    return layers
