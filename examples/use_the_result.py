"""Use what `regnet-itk run` has written: with SimpleITK, with ITK, and with itk-elastix's transformix.

python use_the_result.py RUN MOVING OUT

RUN is the output folder of a registration, MOVING the moving image (or a label image on its grid). OUT gets it three
times on the grid of the fixed image.
"""

import sys
from pathlib import Path

import itk
import SimpleITK as sitk

run, moving_file, out = map(Path, sys.argv[1:4])
out.mkdir(parents=True, exist_ok=True)
composite = str(next(run.glob("*-Composite.h5")))  # T, from points of the fixed image to points of the moving one
fixed_grid = str(sorted(run.glob("result.*.mha"))[-1])  # any image on the fixed image's grid

# SimpleITK
transform = sitk.ReadTransform(composite)
moving = sitk.ReadImage(str(moving_file))
warped = sitk.Resample(moving, sitk.ReadImage(fixed_grid), transform, sitk.sitkLinear, -1000.0, sitk.sitkFloat32)
sitk.WriteImage(warped, str(out / "with_simpleitk.mha"))
corner = warped.TransformIndexToPhysicalPoint((0, 0, 0))
print("a point of the fixed image in the moving one:", corner, "->", transform.TransformPoint(corner))

# ITK
moving = itk.imread(str(moving_file), itk.F)
warped = itk.resample_image_filter(
    moving,
    transform=itk.transformread(composite)[0],
    use_reference_image=True,
    reference_image=itk.imread(fixed_grid, itk.F),
    default_pixel_value=-1000.0,
)
itk.imwrite(warped, str(out / "with_itk.mha"))

# transformix, here the one of itk-elastix; for labels set FinalBSplineInterpolationOrder to "0"
parameters = itk.ParameterObject.New()
last = max(run.glob("TransformParameters.?.txt"))
parameters.AddParameterFile(str(last))
parameters.SetParameter("FinalBSplineInterpolationOrder", "1")
warped = itk.transformix_filter(moving, parameters, log_to_console=False)
itk.imwrite(warped, str(out / "with_transformix.mha"))

print(f"the same from the shell: transformix -tp {last} -in {moving_file} -out {out}")
