"""Chains read from elastix's transform files, and from those of ITK that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regnet_itk.data.image_nd import DIMENSIONS
from regnet_itk.data.suffixes import FOREIGN_TRANSFORM_SUFFIXES, ITK_SUFFIXES, PARAMETER_SUFFIXES
from regnet_itk.dicom.files import DICOM_SUFFIX
from regnet_itk.elastix.components import COMPONENTS
from regnet_itk.errors import ParameterError, RegNetItkError, TransformError, did_you_mean
from regnet_itk.inputs import is_file, why_no_file
from regnet_itk.parameters import ParameterMap, decode_text, parse_parameter_text, parse_parameter_toml
from regnet_itk.transforms.base import Transform
from regnet_itk.transforms.chain import MOST_LINKS, Link, TransformChain
from regnet_itk.transforms.dicom_registration import read_registration
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, NO_INITIAL, initial_file, locate_file
from regnet_itk.transforms.itk_files import read_itk
from regnet_itk.transforms.registry import find_elastix_type, known_names, known_types

_ITK_FILE_KEY = "TransformFileName"
_NUMBERS = re.compile(r"\n[ \t]*(\(TransformParameters |TransformParameters *=)[^\n]*(?=\n|$)")
_ANY_TRANSFORM = (
    "Transform", "NumberOfParameters", "TransformParameters", "HowToCombineTransforms",
    "UseBinaryFormatForTransformationParameters",
)  # fmt: skip


def _read_transform_of_itk(values: ParameterMap, folder: Path) -> Transform:
    """Return the transform that elastix (5.2 and later) left in an ITK file, or that 3D Slicer hands to it."""
    name = values.get_str(_ITK_FILE_KEY)
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its transform '{name}' does not exist; correct the path")
    chain = read_itk(path)
    whole = chain.as_matrix() if len(chain.links) != 1 else chain.links[0].transform
    if whole is None:
        raise TransformError(
            f"{values.source}: '{name}' holds {len(chain.links)} transforms, and elastix reads one; "
            "give the file itself"
        )
    return whole


def _read_transform(values: ParameterMap, folder: Path) -> tuple[Transform, tuple[str, ...]]:
    """Return the transform of a file, and the keys that describe it there."""
    name = values.get_str("Transform")
    if name == "File":
        of_any_type = (key for kind in known_types() for key in kind.keys)
        return _read_transform_of_itk(values, folder), (_ITK_FILE_KEY, *of_any_type)
    kind = find_elastix_type(name)
    if kind is not None:
        return kind.read(values, folder), kind.keys
    if name in COMPONENTS:
        raise TransformError(f"{values.source}: only transformix can evaluate a {name}")
    known = known_names()
    near = did_you_mean(name, known)
    raise TransformError(
        f"{values.source}: the transform type '{name}' is not supported{near or ';'} known are {', '.join(known)}"
    )


def file_keys() -> tuple[str, ...]:
    """Return the keys by which a transform file names what it is made of: not where it starts, but its own files."""
    return tuple(dict.fromkeys([*(key for kind in known_types() for key in kind.file_keys), _ITK_FILE_KEY]))


def _link_from(values: ParameterMap, folder: Path) -> Link:
    """Return the link that one elastix transform map describes."""
    for key in ("FixedImageDimension", "MovingImageDimension"):
        if values.get_int(key, 3) != 3:
            raise TransformError(
                f"{values.source}: '{key}' is {values.get_str(key)}; only transformix can evaluate others than 3D ones"
            )
    how = values.get_str("HowToCombineTransforms", "Compose")
    if how not in ("Compose", "Add"):
        raise TransformError(f"{values.source}: HowToCombineTransforms must be Compose or Add, not '{how}'")
    if not values.get_bool("UseDirectionCosines", True) and not _axis_aligned(values):
        raise TransformError(
            f'{values.source}: it was made with (UseDirectionCosines "false") on an image with a direction, '
            'and does not hold in physical space; register again with "true"'
        )
    transform, keys = _read_transform(values, folder)
    return Link(transform, "add" if how == "Add" else "compose", values.without(*INITIAL_KEYS, *_ANY_TRANSFORM, *keys))


def _axis_aligned(values: ParameterMap) -> bool:
    direction = values.get_floats("Direction", 9, np.eye(3).ravel())
    return bool(np.allclose(direction, np.eye(3).ravel(), atol=1e-6))


def _checked_link(values: ParameterMap, folder: Path) -> Link:
    try:
        return _link_from(values, folder)
    except (ParameterError, TransformError) as error:
        raise TransformError(str(error)) from None
    except (RegNetItkError, ValueError, OverflowError) as error:  # numbers that no grid can have
        raise TransformError(f"{values.source}: {error}") from None


def read_chain(path: str | Path) -> TransformChain:
    """Read a transform with all that it starts from.

    Parameters
    ----------
    path : str or Path
        An elastix transform file (.txt or .toml), an ITK transform file (.h5, .tfm), or a DICOM registration (.dcm).

    Raises
    ------
    TransformError, DicomError
        If a file is missing, cut off, not 3D, of an unknown type, refers to itself, or begins with too many others.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> from regnet_itk import read_chain
    >>> sitk.WriteTransform(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)), "shift.tfm")
    >>> read_chain("shift.tfm").map_points([[0.0, 0.0, 0.0]]).tolist()
    [[2.0, 0.0, -1.0]]
    """
    path = Path(path)
    if (why := why_no_file(path)) is not None:
        raise TransformError(f"transform file '{path}' {why}")
    if path.suffix.lower() in (*ITK_SUFFIXES, *FOREIGN_TRANSFORM_SUFFIXES):
        return read_itk(path)
    if path.suffix.lower() == DICOM_SUFFIX:
        return read_registration(path)
    return _read_elastix(path, ())


def _read_elastix(path: Path, seen: tuple[Path, ...]) -> TransformChain:
    here = Path(os.path.realpath(path))
    if here in seen:
        raise TransformError(f"transform file '{path}' has itself as initial transform; correct {INITIAL_KEYS[0]}")
    if len(seen) >= MOST_LINKS:
        raise TransformError(f"transform file '{seen[0]}' begins with more than {MOST_LINKS} others")
    values = read_transform_map(path)
    if "Transform" not in values:
        raise TransformError(f"'{path}' is not a transform file: it has no (Transform ..)")
    link = _checked_link(values, here.parent)
    check_start_is_told(values)
    return _initial_chain(values, here.parent, (*seen, here)).then(link)


def list_transform_maps(path: str | Path, numbers: bool = True) -> list[ParameterMap]:
    """Read the elastix files of a transform without evaluating them.

    Parameters
    ----------
    path : str or Path
        An elastix transform file.
    numbers : bool
        Whether the numbers of ``TransformParameters`` are read, of which B-splines have a million.

    Returns
    -------
    list of ParameterMap
        That of `path` first, then that of the file that it starts from, and so on to one that is not elastix's.

    Raises
    ------
    TransformError
        If a file is missing or malformed, refers to itself, or begins with too many others.
    """
    maps: list[ParameterMap] = []
    seen: set[Path] = set()
    following: Path | None = Path(path)
    while following is not None and following.suffix.lower() not in (*ITK_SUFFIXES, *FOREIGN_TRANSFORM_SUFFIXES):
        here = Path(os.path.realpath(following))
        if (why := why_no_file(following)) is not None:
            raise TransformError(f"transform file '{following}' {why}")
        if here in seen:
            raise TransformError(
                f"transform file '{following}' has itself as initial transform; correct {INITIAL_KEYS[0]}"
            )
        if len(seen) >= MOST_LINKS:
            raise TransformError(f"transform file '{path}' begins with more than {MOST_LINKS} others")
        seen.add(here)
        maps.append(read_transform_map(following, numbers))
        following = locate_initial(maps[-1], here.parent)
    return maps


def locate_initial(values: ParameterMap, folder: Path) -> Path | None:
    """Return the file from which a transform file in `folder` starts, or None.

    Raises
    ------
    TransformError
        If it does not exist.
    """
    name = initial_file(values)
    if name is None:
        return None
    found = locate_file(name, folder)
    if found is None:
        raise TransformError(f"{values.source}: its initial transform '{name}' does not exist; correct the path")
    return found


def find_beyond_reading(path: str | Path) -> str | None:
    """Say what it is in a transform file that elastix can evaluate and this package cannot; None if there is nothing.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    str or None
        "a WeightedCombinationTransform", "images of 2 dimensions" .. Nothing is said of files that elastix cannot read
        either: `read_chain` tells what is wrong with them.
    """
    path = Path(path)
    if not is_file(path) or path.suffix.lower() not in PARAMETER_SUFFIXES:
        return None
    try:
        for values in list_transform_maps(path, numbers=False):
            dimension = values.get_int("FixedImageDimension", 3)
            if dimension in DIMENSIONS and dimension != 3:
                return f"images of {dimension} dimensions"
            name = values.get_str("Transform", "")
            if name != "File" and name in COMPONENTS and find_elastix_type(name) is None:
                return f"a {name}"
    except (ParameterError, TransformError):
        return None
    return None


def _initial_chain(values: ParameterMap, folder: Path, seen: tuple[Path, ...]) -> TransformChain:
    found = locate_initial(values, folder)
    if found is None:
        return TransformChain()
    return read_itk(found) if found.suffix.lower() in ITK_SUFFIXES else _read_elastix(found, seen)


def check_start_is_told(values: ParameterMap) -> None:
    """Refuse a transform file that says it is added to the transform before it, but not to which one.

    Raises
    ------
    TransformError
        If no key names the initial transform, or says that there is none.
    """
    if values.get_str("HowToCombineTransforms", "") == "Add" and not any(key in values for key in INITIAL_KEYS):
        raise TransformError(
            f"{values.source}: the key '{INITIAL_KEYS[0]}' is missing, and the file may be cut off; without an initial "
            f'transform, write ({INITIAL_KEYS[0]} "{NO_INITIAL}")'
        )


def read_transform_map(path: Path, numbers: bool = True) -> ParameterMap:
    """Read the keys of one elastix transform file (.txt or .toml), without the files that it names.

    Parameters
    ----------
    path : Path
    numbers : bool
        Whether ``TransformParameters`` is read.

    Raises
    ------
    TransformError
        If it cannot be read or is malformed.
    """
    if (why := why_no_file(path)) is not None:
        raise TransformError(f"transform file '{path}' {why}")
    parse = parse_parameter_toml if path.suffix.lower() == ".toml" else parse_parameter_text
    try:
        text = decode_text(path.read_bytes())
        return parse(text if numbers else _NUMBERS.sub("\n", text), str(path))
    except UnicodeDecodeError:
        raise TransformError(f"'{path}' is not a transform file: it is not text") from None
    except OSError as error:
        raise TransformError(f"transform file '{path}' cannot be read: {error.strerror}") from None
    except ParameterError as error:
        raise TransformError(f"{error}; the transform file may be cut off") from None


def chain_from_maps(maps: Sequence[ParameterMap]) -> TransformChain:
    """Return the chain of the maps of one ParameterObject; the first is applied first.

    Parameters
    ----------
    maps : sequence of ParameterMap
        Only the first may name a file to start from, as in elastix's library.

    Raises
    ------
    TransformError
        As for `read_chain`.
    """
    chain = TransformChain()
    for i, values in enumerate(maps):
        if i == 0:
            chain = _initial_chain(values, Path.cwd(), ())
        chain = chain.then(_checked_link(values, Path.cwd()))
    return chain
