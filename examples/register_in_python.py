"""Register two images from Python: an affine stage of elastix, then RegNet.

python register_in_python.py FOLDER OUT

FOLDER holds fixed.mha and moving.mha, and may hold fixed_mask.mha, fixed_points.txt and moving_points.txt, as
`regnet-itk example FOLDER` writes them. OUT gets the warped image, the transforms and a report.
"""

import sys
from pathlib import Path

import numpy as np

import regnet_itk

folder, out = map(Path, sys.argv[1:3])
optional = {
    "fixed_mask": folder / "fixed_mask.mha",
    "fixed_landmarks": folder / "fixed_points.txt",
    "moving_landmarks": folder / "moving_points.txt",
}

result = regnet_itk.register(
    folder / "fixed.mha",  # itk and SimpleITK images will do as well
    folder / "moving.mha",
    ["affine", "regnet_multistage"],
    **{name: path for name, path in optional.items() if path.exists()},
)

if result.initial_tre:
    print(f"landmark error before: {result.initial_tre.mean:.2f} mm")
for stage in result.stages:
    print(f"{stage.name}: {stage.seconds:.1f} s" + (f", landmark error {stage.tre.mean:.2f} mm" if stage.tre else ""))
print(f"voxels that fold: {result.folding:.3%}")

vectors = result.displacement.vectors  # numpy, (z, y, x, 3): T(x) - x in mm, LPS, at the fixed image's voxels
print(f"mean displacement: {np.linalg.norm(vectors, axis=-1).mean():.2f} mm")
print("where the middle of the fixed image lies in the moving one:")
print(result.chain.map_points(result.pair.fixed.grid.centre()))

result.write(out)
