"""A script for itk-elastix, with RegNet in the place of its B-spline stage.

python elastix_style.py FOLDER OUT

FOLDER holds fixed.mha and moving.mha; OUT gets the result image, which transformix makes once more.
"""

import sys
from pathlib import Path

import itk

import regnet_itk

folder, out = map(Path, sys.argv[1:3])
out.mkdir(parents=True, exist_ok=True)
fixed, moving = (itk.imread(str(folder / f"{name}.mha"), itk.F) for name in ("fixed", "moving"))

parameters = itk.ParameterObject.New()
for name in ("affine", "regnet_multistage"):
    parameters.AddParameterMap(dict(regnet_itk.read_parameter_map(name).values))

# was: itk.elastix_registration_method(fixed, moving, parameter_object=parameters)
image, transform = regnet_itk.registration_method(fixed, moving, parameter_object=parameters)
itk.imwrite(image, str(out / "result.mha"))
itk.imwrite(itk.transformix_filter(moving, transform, log_to_console=False), str(out / "transformix.mha"))

# The same with an object, whose progress can be watched
method = regnet_itk.RegNetRegistrationMethod.New(fixed, moving, parameter_object=parameters)
method.AddObserver(itk.ProgressEvent(), lambda: print(f"\r{method.GetProgress():4.0%}", end=""))
method.Update()
print("\na point of the fixed image in the moving one:", method.GetCombinationTransform().TransformPoint((0, 0, 0)))
