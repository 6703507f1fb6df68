"""The keys of elastix's transform files that say where a transform starts, and how values in them are read."""

from __future__ import annotations

from pathlib import Path

from regnet_itk.data.grid import LARGEST_LENGTH
from regnet_itk.errors import OutputError, TransformError
from regnet_itk.inputs import is_file
from regnet_itk.parameters import ParameterMap

INITIAL_KEYS = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
NO_INITIAL = "NoInitialTransform"
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_UNNAMEABLE = {'"': "a double quote", **dict.fromkeys(_LINE_BREAKS, "a line break")}


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
        if is_file(path):
            return path
    return None


def check_nameable(folder: str | Path) -> None:
    """Refuse a folder whose path cannot stand in elastix's files, which name each other; they know no escapes.

    Raises
    ------
    OutputError
        If its absolute path has a double quote or a line break, or is not UTF-8.
    """
    path = str(Path(folder).resolve())
    odd = next((name for mark, name in _UNNAMEABLE.items() if mark in path), None)
    try:
        path.encode()
    except UnicodeEncodeError:
        odd = "what is not UTF-8"
    if odd is not None:
        shown = path.encode("unicode_escape").decode()
        raise OutputError(
            f"the output folder '{shown}' has {odd} in its path, which elastix's transform files cannot name; give "
            "another folder"
        )


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
    if not all(abs(value) <= LARGEST_LENGTH for value in found):
        raise TransformError(
            f"{values.source}: '{key}' holds a value that is not finite, or that no transform can have"
        )
    return found
