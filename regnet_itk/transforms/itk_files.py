"""Chains as ITK's files and SimpleITK's transforms: written exactly, and read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import LARGEST_LENGTH, Grid
from regnet_itk.data.suffixes import ITK_SUFFIXES
from regnet_itk.errors import TransformError
from regnet_itk.outputs import write_whole
from regnet_itk.transforms.chain import MOST_LINKS, Link, TransformChain
from regnet_itk.transforms.itk_guard import try_itk_file
from regnet_itk.transforms.matrix import matrix_of
from regnet_itk.transforms.registry import find_itk_type


def write_itk(chain: TransformChain, path: str | Path, grid: Grid | None = None) -> None:
    """Write a chain as an ITK composite transform (.h5 or .tfm), whole or not at all.

    Parameters
    ----------
    chain : TransformChain
    path : str or Path
    grid : Grid, optional
        See `TransformChain.to_sitk`.

    Raises
    ------
    TransformError
        If the suffix is not one of ITK's, or a grid is needed.
    OutputError
        If the file cannot be written.
    """
    import SimpleITK as sitk

    if Path(path).suffix.lower() not in ITK_SUFFIXES:
        raise TransformError(f"'{path}': an ITK transform file ends in {', '.join(ITK_SUFFIXES)}")
    composite = chain.to_sitk(grid)
    write_whole(path, lambda part: sitk.WriteTransform(composite, str(part)))


def _check_hdf5(path: Path) -> None:
    """Refuse what is no HDF5 file, or was cut off, before HDF5's library prints pages about it."""
    with path.open("rb") as file:
        head = file.read(48)
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise TransformError(f"transform file '{path}' cannot be read: it is no HDF5 file")
    where = 40 if head[8] < 2 else 28  # of the address of the end, by the version of the header
    end, size = int.from_bytes(head[where : where + 8], "little"), path.stat().st_size
    if size < end:
        raise TransformError(f"transform file '{path}' cannot be read: it is cut off ({size} of {end} bytes)")


_TEXT_SUFFIXES = (".tfm", ".txt")
_TEXT_BEGINS = "#Insight Transform File"
_ON_A_GRID = ("BSplineTransform", "DisplacementFieldTransform")  # their fixed parameters begin with the size


def _check_text(path: Path) -> None:
    """Refuse a text file that was cut off, asks for more numbers than it has, or holds what is no number.

    ITK takes a transform without its parameters as the identity.
    """
    where = f"transform file '{path}' cannot be read"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TransformError(f"{where}: it is damaged: its text is not UTF-8") from None
    if not text.startswith(_TEXT_BEGINS):
        raise TransformError(f"{where}: it does not begin with '{_TEXT_BEGINS}'")
    if not text.endswith("\n"):  # the only sign that digits of the last number may be missing
        raise TransformError(f"{where}: its last line has no end, it may be cut off; copy it again, or end the line")
    name, found = "", dict[str, list[float]]()
    for line in [*text.splitlines(), "Transform: end"]:
        key, _, value = line.partition(":")
        key = key.strip()
        if key == "Transform":
            _check_counts(name, found, where)
            name, found = value.strip(), {}
        elif key in ("Parameters", "FixedParameters"):
            try:
                found[key] = [float(word) for word in value.split()]
            except ValueError:
                raise TransformError(f"{where}: {key} of its {name} hold what is no number") from None
            if not np.isfinite(found[key]).all():
                raise TransformError(f"{where}: {key} of its {name} hold a number that is not finite")


def _check_counts(name: str, found: dict[str, list[float]], where: str) -> None:
    if not name or name.startswith("CompositeTransform"):
        return
    for key in ("Parameters", "FixedParameters"):
        if key not in found:
            raise TransformError(f"{where}: its {name} has no {key}; it is cut off")
    dimension = 2 if name.endswith("_2_2") else 3
    if name.startswith(_ON_A_GRID):
        size = found["FixedParameters"][:dimension]
        wanted = dimension * math.prod(size)
        if len(size) < dimension or wanted != len(found["Parameters"]):
            told = " x ".join(f"{n:g}" for n in size)
            raise TransformError(
                f"{where}: the grid of its {name} has {told} points, which need {wanted:g} parameters, and it holds "
                f"{len(found['Parameters'])}"
            )


def read_itk(path: Path) -> TransformChain:
    """Read an ITK transform file (.h5, .tfm, .mat, .xfm).

    Raises
    ------
    TransformError
        If it cannot be read, is damaged, is not 3D, holds numbers that are not finite, or is of a type that chains do
        not hold.
    """
    import SimpleITK as sitk

    if path.suffix.lower() in (".h5", ".hdf5"):
        _check_hdf5(path)
    elif path.suffix.lower() in _TEXT_SUFFIXES:
        _check_text(path)
    if (reason := try_itk_file(path)) is not None:
        raise TransformError(f"transform file '{path}' cannot be read: {reason}")
    try:
        found = sitk.ReadTransform(str(path))
    except KeyError:
        return _read_nameless(path)
    if found.GetDimension() != 3:
        raise TransformError(f"transform file '{path}' is {found.GetDimension()}D; only 3D transforms can be used")
    return chain_from_sitk(found, str(path))


def _read_nameless(path: Path) -> TransformChain:
    """Read a transform of a class that ITK has and SimpleITK does not, such as ComposeScaleSkewVersor3DTransform."""
    import itk

    transforms = itk.transformread(str(path))
    names = ", ".join(type(transform).__name__ for transform in transforms)
    if len(transforms) != 1 or not transforms[0].IsLinear():
        raise TransformError(f"{path}: the ITK transform {names} is not supported; give a matrix, B-spline or field")
    matrix = matrix_of(lambda points: np.array([list(transforms[0].TransformPoint(p)) for p in points.tolist()]))
    return TransformChain((Link(matrix),))


def chain_from_sitk(transform: Any, source: str = "the transform") -> TransformChain:
    """Return the chain of a SimpleITK transform: a matrix, a B-spline, a field, or a composite of them.

    Raises
    ------
    TransformError
        If it is of another type.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> from regnet_itk import chain_from_sitk
    >>> chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0))).map_points([[0.0, 0.0, 0.0]]).tolist()
    [[2.0, 0.0, -1.0]]
    """
    import SimpleITK as sitk

    transform = transform.Downcast()
    name = type(transform).__name__
    numbers = (transform.GetParameters(), transform.GetFixedParameters())
    if not all((np.abs(values) <= LARGEST_LENGTH).all() for values in numbers):
        raise TransformError(f"{source}: its {name} holds a number that is not finite, or that no transform can have")
    if isinstance(transform, sitk.CompositeTransform):
        if transform.GetNumberOfTransforms() > MOST_LINKS:
            raise TransformError(f"{source} is made of more than {MOST_LINKS} transforms")
        chain = TransformChain()
        for i in reversed(range(transform.GetNumberOfTransforms())):
            for link in chain_from_sitk(transform.GetNthTransform(i), source).links:
                chain = chain.then(link)
        return chain
    kind = find_itk_type(name)
    if kind is not None and kind.from_sitk is not None:
        return TransformChain((Link(kind.from_sitk(transform)),))
    if transform.IsLinear():
        matrix = matrix_of(lambda points: np.array([transform.TransformPoint(p) for p in points.tolist()]))
        return TransformChain((Link(matrix),))
    raise TransformError(
        f"{source}: the ITK transform {name} is not supported; give a matrix, B-spline, field or composite"
    )
