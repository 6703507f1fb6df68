"""RegNet as a registration stage beside elastix.

T(x) = x + u(x) maps points of the fixed image to the moving image, in mm, LPS; the warped image is I_M(T(x)).
The names below are imported when they are first used, so that ``import regnet_itk`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regnet_itk.displacement import DisplacementField, read_displacement_field
    from regnet_itk.elastix_api import RegNetRegistrationMethod, registration_method
    from regnet_itk.errors import RegNetItkError
    from regnet_itk.geometry import Grid
    from regnet_itk.images import Image, read_image, write_image
    from regnet_itk.parameters import ParameterMap, read_parameter_map
    from regnet_itk.phantom import make_phantom
    from regnet_itk.points import Landmarks, read_landmarks
    from regnet_itk.registration import register
    from regnet_itk.results import RegistrationResult
    from regnet_itk.transforms import TransformChain, read_chain

_HOME = {
    "DisplacementField": "displacement",
    "Grid": "geometry",
    "Image": "images",
    "Landmarks": "points",
    "ParameterMap": "parameters",
    "RegNetItkError": "errors",
    "RegNetRegistrationMethod": "elastix_api",
    "RegistrationResult": "results",
    "TransformChain": "transforms",
    "make_phantom": "phantom",
    "read_chain": "transforms",
    "read_displacement_field": "displacement",
    "read_image": "images",
    "read_landmarks": "points",
    "read_parameter_map": "parameters",
    "register": "registration",
    "registration_method": "elastix_api",
    "write_image": "images",
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
