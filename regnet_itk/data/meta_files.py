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

from regnet_itk.data.grid import LARGEST_COSINE, LARGEST_LENGTH
from regnet_itk.errors import ImageError
from regnet_itk.inputs import why_no_file

SUFFIXES = (".mha", ".mhd")

_LONGEST_HEADER = 65_536
_LONGEST_LINE = 4096
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f]")
_SWITCHES = ("BinaryData", "CompressedData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_YES, _NO = ("true", "t", "1"), ("false", "f", "0")
_NUMBERS = {
    "TransformMatrix": LARGEST_COSINE, "Rotation": LARGEST_COSINE, "Orientation": LARGEST_COSINE,
    "Offset": LARGEST_LENGTH, "Position": LARGEST_LENGTH, "Origin": LARGEST_LENGTH,
    "CenterOfRotation": LARGEST_LENGTH, "ElementSpacing": LARGEST_LENGTH, "ElementSize": LARGEST_LENGTH,
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
        return self.values.get("CompressedData", "").lower() in _YES

    @property
    def big_endian(self) -> bool:
        """Whether a value's most significant byte comes first."""
        keys = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        return any(self.values.get(key, "").lower() in _YES for key in keys)


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
    values: dict[str, str] = {}
    for line in head[: match.start()].decode("latin-1").split("\n"):
        key, equals, value = line.partition("=")
        if len(line) > _LONGEST_LINE or _CONTROL.search(line.rstrip("\r")):
            raise ImageError(
                f"{role} '{path}' is damaged: its header has a line of {len(line)} characters that is no text"
            )
        if line.strip() and not equals:
            raise ImageError(f"{role} '{path}' is damaged: its header has a line '{line.strip()[:40]}' without '='")
        if equals and key.strip() in values:
            raise ImageError(f"{role} '{path}' is damaged: its header has two lines '{key.strip()}'")
        if equals:
            values[key.strip()] = value.strip()
    name = match[1].decode(errors="replace")
    local = name.upper() == "LOCAL"
    listed = (name.upper().startswith("LIST") or "%" in name) and name.isprintable()
    if not local and not listed and (why := why_no_file(path.parent / name)) is not None:
        raise ImageError(f"{role} '{path}': the file of its voxels, '{name[:200]}', {why}")
    header = MetaHeader(values, path if local else path.parent / name, match.end() if local else 0)
    _check_numbers(header, f"{role} '{path}'")
    return header


def _check_numbers(header: MetaHeader, where: str) -> None:
    for key in _SWITCHES:
        if (text := header.values.get(key, "False").lower()) not in (*_YES, *_NO):
            raise ImageError(f"{where} has '{text[:40]}' as {key} in its header, which is neither True nor False")
    if header.compressed and header.values.get("BinaryData", "").lower() not in _YES:
        raise ImageError(f"{where} is packed, and its header does not say BinaryData = True")
    if header.compressed and not re.fullmatch(r"[1-9]\d{0,15}", header.values.get("CompressedDataSize", ""), re.ASCII):
        raise ImageError(f"{where} is packed, and its header does not say to what size (CompressedDataSize)")
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
        packed = file.read(int(header.values["CompressedDataSize"]))
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
