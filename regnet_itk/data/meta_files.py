"""What ITK does not check of a MetaImage: numbers that make it hang or crash, and altered voxels.

ITK takes compressed voxels whose checksum is wrong, and reads other values. They are unpacked here instead.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.errors import ImageError

SUFFIXES = (".mha", ".mhd")

_LONGEST_HEADER = 65_536
_LARGEST_COSINE = 1e3  # of a direction; ITK's singular value decomposition never ends with numbers such as 1e308
_LARGEST_LENGTH = 1e12  # mm
_NUMBERS = {
    "TransformMatrix": _LARGEST_COSINE, "Rotation": _LARGEST_COSINE, "Orientation": _LARGEST_COSINE,
    "Offset": _LARGEST_LENGTH, "Position": _LARGEST_LENGTH, "Origin": _LARGEST_LENGTH,
    "CenterOfRotation": _LARGEST_LENGTH, "ElementSpacing": _LARGEST_LENGTH, "ElementSize": _LARGEST_LENGTH,
}  # fmt: skip


@dataclass(frozen=True)
class MetaHeader:
    """A MetaImage's header.

    Parameters
    ----------
    values : dict
        Key to text.
    data : Path
        The file that holds the voxels.
    offset : int
        Where they begin in it.
    """

    values: dict[str, str]
    data: Path
    offset: int

    @property
    def compressed(self) -> bool:
        """Whether the voxels are packed by zlib."""
        return self.values.get("CompressedData", "").lower() == "true"

    @property
    def big_endian(self) -> bool:
        """Whether a value's most significant byte comes first."""
        keys = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        return any(self.values.get(key, "").lower() == "true" for key in keys)


def is_meta(path: Path) -> bool:
    """Say whether the name is that of a MetaImage."""
    return path.name.lower().endswith(SUFFIXES)


def read_meta_header(path: Path, role: str) -> MetaHeader:
    """Read a header and check its numbers.

    Raises
    ------
    ImageError
        If it is none, or holds numbers that ITK cannot bear.
    """
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    match = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*(.*?)[ \t]*\r?\n", head, re.MULTILINE)
    if match is None:
        raise ImageError(
            f"{role} '{path}' cannot be read: it is no MetaImage, or cut off (its header has no line 'ElementDataFile')"
        )
    values = {}
    for line in head[: match.start()].decode("latin-1").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key.strip()] = value.strip()
    name = match[1].decode(errors="replace")
    local = name.upper() == "LOCAL"
    header = MetaHeader(values, path if local else path.parent / name, match.end() if local else 0)
    _check_numbers(header, f"{role} '{path}'")
    return header


def _check_numbers(header: MetaHeader, where: str) -> None:
    dimensions = header.values.get("NDims", "")
    if not re.fullmatch(r"[1-9]", dimensions, re.ASCII):
        raise ImageError(f"{where} has NDims = {dimensions[:40]} in its header; an image has 3 dimensions here")
    sizes = header.values.get("DimSize", "").split()
    if len(sizes) != int(dimensions) or not all(re.fullmatch(r"[1-9]\d{0,8}", n, re.ASCII) for n in sizes):
        raise ImageError(f"{where} has DimSize = {' '.join(sizes)[:80]} in its header, which is no size of an image")
    for key, largest in _NUMBERS.items():
        for text in header.values.get(key, "").split():
            try:
                good = abs(float(text)) <= largest
            except ValueError:
                good = False
            if not good:
                raise ImageError(f"{where} has '{text[:40]}' in {key} of its header, which no image can have")


def unpack_voxels(
    header: MetaHeader, shape: tuple[int, ...], dtype: npt.DTypeLike, path: Path, role: str
) -> npt.NDArray[Any]:
    """Unpack compressed voxels and check that nothing was altered.

    Parameters
    ----------
    header : MetaHeader
        Of a compressed image.
    shape : tuple of int
        z, y, x, and the components if there are several.
    dtype : data type
        Of a value.
    path : Path
    role : str
        For the messages.

    Raises
    ------
    ImageError
        If the voxels are cut off or altered.
    """
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    with header.data.open("rb") as file:
        file.seek(header.offset)
        packed = file.read()
    piece = zlib.decompressobj()
    try:
        raw = bytearray(piece.decompress(packed, wanted + 1))
    except zlib.error as error:
        told = "the checksum of its voxels is wrong" if "incorrect data check" in str(error) else str(error)
        raise ImageError(f"{role} '{path}' is damaged: {told}; copy it again") from None
    if len(raw) != wanted or not piece.eof:
        raise ImageError(f"{role} '{path}' is cut off: it unpacks to {len(raw)} of {wanted} bytes; copy it again")
    stored = np.frombuffer(raw, np.dtype(dtype).newbyteorder(">" if header.big_endian else "<"))
    return stored.reshape(shape).astype(dtype, copy=False)
