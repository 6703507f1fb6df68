"""Stages that are quick enough for a test."""

from __future__ import annotations

from regnet_itk.parameters import read_parameter_map

AFFINE = read_parameter_map("affine").with_(
    NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=40
)
REGNET = read_parameter_map("regnet_multistage")
