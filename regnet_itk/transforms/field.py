"""Displacement fields as transforms: how elastix and ITK write them, and how they are sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.base import PointSampler, TransformType
from regnet_itk.transforms.elastix_keys import locate_file


def read_field(values: ParameterMap, folder: Path) -> DisplacementField:
    """Read the field that an elastix file names; see `TransformType.read`.

    Raises
    ------
    ParameterError, TransformError
        If it is to be read with the nearest vector, or is missing or damaged.
    """
    if values.get_int("DeformationFieldInterpolationOrder", 0) != 1:
        raise TransformError(
            f"{values.source}: the deformation field is to be read with the nearest vector; "
            "set (DeformationFieldInterpolationOrder 1)"
        )
    name = values.get_str("DeformationFieldFileName")
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its deformation field '{name}' does not exist; correct the path")
    return read_displacement_field(path)


def _from_sitk(transform: Any) -> DisplacementField:
    return DisplacementField.from_sitk(transform.GetDisplacementField())


def _sampler(field: DisplacementField) -> PointSampler:
    from regnet_itk.transforms.point_samplers import FieldSampler  # torch is slow to start

    return FieldSampler(field.vectors, field.grid)


FIELD = TransformType(
    DisplacementField,
    ("DeformationFieldTransform",),
    read_field,
    keys=("NumberOfParameters", "DeformationFieldFileName", "DeformationFieldInterpolationOrder"),
    file_keys=("DeformationFieldFileName",),
    itk_names=("DisplacementFieldTransform",),
    from_sitk=_from_sitk,
    sampler=_sampler,
)
