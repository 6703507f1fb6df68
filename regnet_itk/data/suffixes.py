"""The suffixes of the files that are read and written, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
RESULT_FORMATS = (
    "mha", "mhd", "nii", "nii.gz", "nrrd", "nhdr", "hdr", "img", "img.gz", "gipl", "gipl.gz", "vtk", "dcm", "tif",
    "tiff", "png", "jpg", "jpeg", "bmp", "mnc", "h5", "hdf5", "mrc",
)  # fmt: skip
"""The formats of result images: those that ITK, and elastix with it, can write."""
FIELD_SUFFIXES = (".mha", ".mhd", ".nrrd", *NIFTI_SUFFIXES)
ITK_SUFFIXES = (".h5", ".hdf5", ".tfm")
FOREIGN_TRANSFORM_SUFFIXES = (".mat", ".xfm")
"""Of transforms that ITK reads too, and that are not written here."""
LANDMARK_SUFFIXES = (".pts", ".vtk", ".csv", ".fcsv", ".json")
"""Of landmarks alone; .txt may hold them as well."""
PARAMETER_SUFFIXES = (".txt", ".toml")
MODEL_SUFFIX = ".safetensors"


def known_suffix(path: str | Path, known: Iterable[str]) -> str:
    """Return the longest of the known suffixes that a file's name ends in, in small letters; empty if it has none."""
    name = Path(path).name.lower()
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")


def without_suffix(path: str | Path, known: Iterable[str] = IMAGE_SUFFIXES) -> str:
    """Return the name of a file without its folder and the longest of the known suffixes."""
    name = Path(path).name
    return name[: len(name) - len(known_suffix(name, known))]
