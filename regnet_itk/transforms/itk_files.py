"""Chains as ITK's files and SimpleITK's transforms: written exactly, and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.suffixes import ITK_SUFFIXES
from regnet_itk.errors import TransformError
from regnet_itk.outputs import write_whole
from regnet_itk.transforms.chain import Link, TransformChain
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


def read_itk(path: Path) -> TransformChain:
    """Read an ITK transform file (.h5, .tfm, .mat, .xfm).

    Raises
    ------
    TransformError
        If it cannot be read, is not 3D, or is of a type that chains do not hold.
    """
    import SimpleITK as sitk

    if path.suffix.lower() in (".h5", ".hdf5"):
        _check_hdf5(path)
    try:
        found = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise TransformError(f"transform file '{path}' cannot be read: {reason}") from None
    if found.GetDimension() != 3:
        raise TransformError(f"transform file '{path}' is {found.GetDimension()}D; only 3D transforms can be used")
    return chain_from_sitk(found, str(path))


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
    if isinstance(transform, sitk.CompositeTransform):
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
