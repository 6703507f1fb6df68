"""The keys of elastix's transform files that say where a transform starts, and how values in them are read."""

from __future__ import annotations

import math
from pathlib import Path

from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap

INITIAL_KEYS = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
NO_INITIAL = "NoInitialTransform"


def initial_file(values: ParameterMap) -> str | None:
    """Return the name of the file that a transform map starts from: the new spelling of the key wins, as in elastix."""
    for key in INITIAL_KEYS:
        if key in values:
            name = values.get_str(key)
            return None if name == NO_INITIAL else name
    return None


def locate_file(name: str, folder: Path) -> Path | None:
    """Find a file by its name in another: from the working directory, from that file's folder, or moved beside it."""
    for path in (Path(name), folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    return None


def read_parameters(values: ParameterMap, count: int) -> list[float]:
    """Return the numbers of ``TransformParameters``.

    Raises
    ------
    TransformError
        If they are not `count` finite numbers, or not as many as the file declares.
    """
    found = read_floats(values, "TransformParameters")
    declared = values.get_int("NumberOfParameters", len(found))
    if not len(found) == declared == count:
        raise TransformError(
            f"{values.source}: a {values.get_str('Transform')} has {count} parameters here, but the file declares "
            f"{declared} and holds {len(found)}; it may be cut off"
        )
    return found


def read_floats(values: ParameterMap, key: str, count: int | None = None) -> list[float]:
    """Return the values of a key as finite numbers; with `count`, there must be as many.

    Raises
    ------
    ParameterError, TransformError
        If the key is missing, or a value is no finite number.
    """
    found = values.get_floats(key, count)
    if not all(math.isfinite(value) for value in found):
        raise TransformError(f"{values.source}: '{key}' holds a value that is not finite")
    return found
