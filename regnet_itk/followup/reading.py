"""Lesions as files hold them: labels, points or a structure set, each of one image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import check_same_grid
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import check_inside, read_landmarks
from regnet_itk.data.suffixes import LANDMARK_SUFFIXES, known_suffix
from regnet_itk.dicom.files import DICOM_SUFFIX, STRUCTURES, check_same_patient, is_dicom, sop_class
from regnet_itk.dicom.series import Series
from regnet_itk.errors import DicomError, ImageError, ParameterError
from regnet_itk.followup.lesions import Lesion, lesion_of_structure, lesions_at_points, lesions_of_labels
from regnet_itk.radiotherapy.structures import StructureSet, read_structures

_POINTS = (*LANDMARK_SUFFIXES, ".txt")
_LARGE = 500.0  # cm3; organs are, lesions hardly ever
_log = logging.getLogger(__name__)


def read_lesions(
    path: str | Path,
    grid: Grid,
    role: str = "fixed",
    *,
    connected: bool = False,
    structures: Sequence[str] = (),
    series: Series | None = None,
) -> tuple[Lesion, ...]:
    """Read the lesions of an image, and measure them in its space.

    Parameters
    ----------
    path : str or Path
        Labels as an image (each value one lesion), points (.txt, .csv, .fcsv .. as for landmarks), or an RT Structure
        Set (.dcm, each region of interest one lesion).
    grid : Grid
        Of the image that they were marked in.
    role : {"fixed", "moving"}
        Which image that is, for the messages.
    connected : bool
        Whether each connected piece of the labels is a lesion, whatever its value.
    structures : sequence of str
        Of a structure set, the regions whose names match one of these patterns ("GTV*"); all by default.
    series : Series, optional
        Of the image; a structure set is checked to be of its patient and frame of reference.

    Returns
    -------
    tuple of Lesion
        Empty if the image has none.

    Raises
    ------
    ImageError
        If labels lie on another grid than the image, or are none.
    PointsError
        If the points cannot be read, or lie outside of the image.
    DicomError
        If the structure set cannot be read, is of another scan, has no region of such a name, or, where no names are
        given, one as large as an organ.
    ParameterError
        If `connected` or `structures` is given for a file that it says nothing about.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, read_lesions, write_image
    >>> labels = np.zeros((9, 20, 20), dtype=np.uint8)
    >>> labels[2:7, 4:10, 4:12] = 3
    >>> write_image(Image(labels, Grid((20, 20, 9), spacing=(1.0, 1.0, 2.0))), "labels.mha")
    >>> lesion, = read_lesions("labels.mha", Grid((20, 20, 9), spacing=(1.0, 1.0, 2.0)))
    >>> lesion.name, lesion.volume, lesion.centre.tolist()
    ('3', 480.0, [7.5, 6.5, 8.0])
    """
    path, what = Path(path), f"the {role} lesions '{path}'"
    kind = _kind(path)
    if connected and kind != "labels":
        raise ParameterError(f"{what} are {kind}, of which no piece can be told: leave `connected` away")
    if structures and kind != "structures":
        raise ParameterError(f"{what} are {kind}, which have no names to choose by: leave `structures` away")
    if kind == "points":
        landmarks = read_landmarks(path, grid)
        check_inside(landmarks, grid, role)
        return lesions_at_points(landmarks)
    if kind == "structures":
        return _read_structures(path, grid, role, structures, series)
    labels = read_image(path, f"{role} lesions")
    check_same_grid(labels.grid, grid, f"{what} lie", f"the {role} image")
    try:
        found = lesions_of_labels(labels, connected)
    except ImageError as error:
        raise ImageError(f"{what}: {error}") from None
    if not found:
        _log.warning("%s are none: every voxel is 0", what)
    for lesion in found:
        if lesion.pieces > 1:
            _log.warning(
                "%s: label %s has %d pieces, which are taken as one lesion; give `connected` if each of them is one",
                what, lesion.name, lesion.pieces,
            )  # fmt: skip
        if lesion.volume is not None and lesion.volume > 1000 * _LARGE:
            _log.warning("%s: label %s, of %.0f cm3, is hardly a lesion", what, lesion.name, lesion.volume / 1000)
    return found


def _kind(path: Path) -> str:
    if path.suffix.lower() == DICOM_SUFFIX or (is_dicom(path) and sop_class(path) == STRUCTURES):
        return "structures"
    return "points" if known_suffix(path, _POINTS) else "labels"


def _read_structures(
    path: Path, grid: Grid, role: str, patterns: Sequence[str], series: Series | None
) -> tuple[Lesion, ...]:
    given = read_structures(path)
    if series is not None:
        _check_series(given, series)
    chosen = [
        structure
        for structure in given.structures
        if not patterns or any(fnmatchcase(structure.name.lower(), pattern.lower()) for pattern in patterns)
    ]
    if not chosen:
        names = ", ".join(structure.name for structure in given.structures)
        raise DicomError(f"{given.what} have no region that `structures` names; there are {names}")
    lesions: list[Lesion] = []
    for structure in chosen:
        found = lesion_of_structure(structure, grid)
        if not found:
            _log.warning("%s: '%s' has no contours, and is left out", given.what, structure.name)
        lesions += found
    outside = [lesion.name for lesion in lesions if not grid.contains(lesion.centre)]
    if outside:
        raise DicomError(
            f"{given.what}: '{outside[0]}' lies outside of the {role} image"
            f"{f', and so do {len(outside) - 1} others' if len(outside) > 1 else ''}; give the structures of that scan"
        )
    organs = [lesion for lesion in lesions if lesion.volume is not None and lesion.volume > 1000 * _LARGE]
    if organs and not patterns:
        raise DicomError(
            f"{given.what}: '{organs[0].name}' of {(organs[0].volume or 0) / 1000:.0f} cm3 is hardly a lesion; say "
            "which regions are, by their names, with `structures`"
        )
    return tuple(lesions)


def _check_series(given: StructureSet, series: Series) -> None:
    """Refuse structures of another patient, or of another scan."""
    check_same_patient(given.header, given.what, series.first, series.what)
    drawn_on, uid = given.series(), str(series.first.SeriesInstanceUID)
    if given.frame_of_reference != series.frame_of_reference:
        raise DicomError(
            f"{given.what} lie in the frame of reference {given.frame_of_reference}, and {series.what} in "
            f"{series.frame_of_reference}: they belong to another scan"
        )
    if drawn_on and uid not in drawn_on:
        _log.warning("%s were drawn on another series than %s, in the same frame of reference", given.what, series.what)
