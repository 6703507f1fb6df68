"""RegNet as a registration stage beside elastix.

T(x) = x + u(x) maps points of the fixed image to the moving image, in mm, LPS; the warped image is I_M(T(x)).
The names below are imported when they are first used, so that ``import regnet_itk`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regnet_itk.anatomy.phantom import make_phantom
    from regnet_itk.data.field import DisplacementField, read_displacement_field
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.data.image_files import read_image, write_image
    from regnet_itk.data.landmarks import Landmarks, read_landmarks
    from regnet_itk.errors import RegNetItkError
    from regnet_itk.interfaces.itk_elastix import RegNetRegistrationMethod, registration_method
    from regnet_itk.parameters import ParameterMap, read_parameter_map
    from regnet_itk.registration import register
    from regnet_itk.results import RegistrationResult
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.transforms.elastix_files import read_chain

_HOME = {
    "DisplacementField": "data.field",
    "Grid": "data.grid",
    "Image": "data.image",
    "Landmarks": "data.landmarks",
    "ParameterMap": "parameters",
    "RegNetItkError": "errors",
    "RegNetRegistrationMethod": "interfaces.itk_elastix",
    "RegistrationResult": "results",
    "TransformChain": "transforms.chain",
    "make_phantom": "anatomy.phantom",
    "read_chain": "transforms.elastix_files",
    "read_displacement_field": "data.field",
    "read_image": "data.image_files",
    "read_landmarks": "data.landmarks",
    "read_parameter_map": "parameters",
    "register": "registration",
    "registration_method": "interfaces.itk_elastix",
    "write_image": "data.image_files",
}

__all__ = [
    "DisplacementField",
    "Grid",
    "Image",
    "Landmarks",
    "ParameterMap",
    "RegNetItkError",
    "RegNetRegistrationMethod",
    "RegistrationResult",
    "TransformChain",
    "make_phantom",
    "read_chain",
    "read_displacement_field",
    "read_image",
    "read_landmarks",
    "read_parameter_map",
    "register",
    "registration_method",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regnet_itk' has no attribute '{name}'")
    return getattr(importlib.import_module(f"regnet_itk.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
