"""A dose and structures of a phantom, carried from the moving to the fixed scan: how far off the truth they are.

``python pipelines/radiotherapy_benchmark.py [--seeds 3 4 5]`` makes phantoms that breathe, with a tumour of 18 mm
radius low in a lung and 60 Gy around it, registers them by several chains, and prints the table of docs/dicom.md. The
tumour's volume is told once more without contours, of the transform alone: what is off there is the transform's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
from pydicom import Dataset
from skimage.measure import find_contours

from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.radiotherapy.dose import Dose, dose_grid
from regnet_itk.radiotherapy.dose_mapping import map_dose
from regnet_itk.radiotherapy.structure_mapping import StructureMapper
from regnet_itk.radiotherapy.structures import CLOSED, POINT, Contour, Structure
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.transforms.chain import Link, TransformChain

RADIUS = 18.0
"""mm, of the tumour."""

COLUMNS = ("dose error, Gy: mean", "95 %", "volume error: lungs", "tumour", "without contours", "isocentre, mm")


def main() -> int:
    """Make, register, carry; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    given = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    for seed in given.seeds:
        phantom = make_phantom(seed, spacing=(2.0, 2.0, 2.5), extent=(320.0, 240.0, 260.0))
        for name, chain in _chains(phantom):
            rows.setdefault(name, []).append(_measure(phantom, chain))
            print(f"phantom {seed}, {name}: {_cells(np.array(rows[name][-1]))}", flush=True)
    print(f"\n| carried by | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, values in rows.items():
        print(f"| {name} | {_cells(np.abs(values).mean(axis=0))} |")
    return 0


def _cells(values: FloatArray) -> str:
    dose, volumes, point = values[:2], values[2:5], values[5]
    return " | ".join([*(f"{v:.2f}" for v in dose), *(f"{100 * v:.2f} %" for v in volumes), f"{point:.2f}"])


def _chains(phantom: Phantom) -> Iterator[tuple[str, TransformChain]]:
    rigid = register(phantom.fixed, phantom.moving, stages=["rigid"])
    both = register(
        phantom.fixed, phantom.moving, stages=["affine", "regnet_multistage"], fixed_mask=phantom.fixed_mask
    )
    assert isinstance(rigid, RegistrationResult) and isinstance(both, RegistrationResult)
    yield "`rigid`", rigid.chain
    yield "`affine`", TransformChain(both.chain.links[:1])
    yield "`affine`, `regnet_multistage`", both.chain
    yield "the true motion itself", TransformChain((Link(phantom.displacement),))


def _centre(phantom: Phantom) -> FloatArray:
    """Return a place of the moving scan in the lower lung, where breathing moves it most."""
    low = np.argsort(phantom.moving_landmarks[:, 2])
    centre: FloatArray = phantom.moving_landmarks[low[len(low) // 8]]
    return centre


def _planned(points: FloatArray, centre: FloatArray) -> FloatArray:
    """Return Gy in the moving scan: 60 around a centre, falling off at 25 mm within a centimetre."""
    return 60 / (1 + np.exp((np.linalg.norm(points - centre, axis=-1) - 25) / 3))


def _outlines(mask: Image) -> tuple[Contour, ...]:
    found = []
    for z, plane in enumerate(np.pad(mask.array.astype(float), ((0, 0), (1, 1), (1, 1)))):
        for line in find_contours(plane, 0.5):
            index = np.column_stack([line[:-1, 1] - 1, line[:-1, 0] - 1, np.full(len(line) - 1, z)])
            found.append(Contour(mask.grid.index_to_point(index), CLOSED[0]))
    return tuple(found)


def _measure(phantom: Phantom, chain: TransformChain) -> list[float]:
    """Return the columns of a row; volumes with their signs."""
    centre = _centre(phantom)
    at_fixed = phantom.motion.invert_points(centre[None])[0]
    return [*_dose_errors(phantom, chain, centre), *_structure_errors(phantom, chain, centre, at_fixed)]


def _dose_errors(phantom: Phantom, chain: TransformChain, centre: FloatArray) -> tuple[float, float]:
    """Return mean and 95th percentile of the absolute error, in the lungs where the truth is above 6 Gy."""
    around = Grid((46, 46, 46), (3.0, 3.0, 3.0), tuple(centre - 70.0))
    planned = Image(_planned(around.points(), centre).astype(np.float32), around)
    carried = map_dose(Dose(planned, Dataset(), "the dose"), chain, dose_grid(phantom.fixed.grid, around))
    true = _planned(phantom.motion.map_points(carried.grid.points()), centre)
    lungs = phantom.fixed_mask.resampled(carried.grid, order=0).array > 0
    error = np.abs(carried.array - true)[lungs & (true > 6)]
    return float(error.mean()), float(np.percentile(error, 95))


def _structure_errors(
    phantom: Phantom, chain: TransformChain, centre: FloatArray, at_fixed: FloatArray
) -> tuple[float, float, float, float]:
    """Return the errors of the lungs' and of the tumour's volume, that without contours, and of the isocentre in mm."""
    grid = phantom.moving.grid
    fine = grid.with_spacing((0.5, 0.5, grid.spacing[2]))
    tumour = Image(np.linalg.norm(fine.points() - centre, axis=-1) < RADIUS, fine)
    mapper = StructureMapper(chain, phantom.fixed.grid, grid.spacing[2])
    lungs, ball, point = (
        mapper.map(Structure(number, name, None, contours))
        for number, name, contours in (
            (1, "Lungs", _outlines(phantom.moving_mask)), (2, "Tumour", _outlines(tumour)),
            (3, "Isocentre", (Contour(centre[None], POINT),)),
        )
    )  # fmt: skip
    assert lungs.volume_after is not None and ball.volume_after is not None
    small = Grid((140, 140, 140), (0.5, 0.5, 0.5), tuple(at_fixed - 35.0))
    true, alone = (
        float((np.linalg.norm(mapped - centre, axis=-1) < RADIUS).sum()) * 0.125 / 1000
        for mapped in (phantom.motion.map_points(small.points()), chain.map_points(small.points()))
    )
    true_lungs = float((phantom.fixed_mask.array > 0).sum()) * float(np.prod(phantom.fixed.grid.spacing)) / 1000
    off = float(np.linalg.norm(point.structure.contours[0].points[0] - at_fixed))
    return lungs.volume_after / true_lungs - 1, ball.volume_after / true - 1, alone / true - 1, off


if __name__ == "__main__":
    sys.exit(main())
