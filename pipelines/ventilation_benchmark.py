"""Ventilation of phantoms whose breath is known: how far off the maps are from the truth.

``python pipelines/ventilation_benchmark.py [--seeds 3 4 5] [--picture FILE]`` makes phantoms that breathe and keep the
mass of their parenchyma, registers them by several chains, and prints the table of docs/ventilation.md. The picture is
of the first phantom.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage, stats

from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.outputs import write_whole
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.ventilation.maps import VentilationMaps, find_ventilation
from regnet_itk.ventilation.picture import draw_ventilation

CHAINS = {"`affine`": ("affine",), "`affine`, `regnet_multistage`": ("affine", "regnet_multistage")}
TRUTH = "the true motion itself"
SCALE = 6.0
"""mm; the standard deviation of the Gaussian by which maps and truth are smoothed before their ranks are compared."""


def main() -> int:
    """Make, register, measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--spacing", type=float, nargs=3, default=[2.0, 2.0, 2.5], help="edges of a voxel, mm")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    for seed in given.seeds:
        phantom = make_phantom(seed, spacing=tuple(given.spacing))
        for name, chain in _chains(phantom):
            maps = find_ventilation(phantom.fixed, phantom.moving, chain, phantom.fixed_mask, inhale="moving")
            rows.setdefault(name, []).append(_measure(phantom, maps))
            print(f"phantom {seed}, {name}: {' '.join(f'{v:.3f}' for v in rows[name][-1])}", flush=True)
            if given.picture and seed == given.seeds[0] and name == list(CHAINS)[-1]:
                picture = draw_ventilation(phantom.fixed, maps)
                write_whole(given.picture, lambda part, drawn=picture: part.write_bytes(drawn))
    print("\n| transform | breath's volume off by | det J off by | rank correlation | HU: the same | median off by |")
    print("|---|---|---|---|---|---|")
    for name, values in rows.items():
        volume, error, jacobian, hounsfield, median = np.mean(values, axis=0)
        rank = "" if np.isnan(jacobian) else f"{jacobian:.2f}"
        print(f"| {name} | {volume:.1f} % | {error:.3f} | {rank} | {hounsfield:.2f} | {median:.3f} |")
    return 0


def _chains(phantom: Phantom) -> Iterator[tuple[str, TransformChain]]:
    for name, stages in CHAINS.items():
        result = register(phantom.fixed, phantom.moving, stages=list(stages), fixed_mask=phantom.fixed_mask)
        assert isinstance(result, RegistrationResult)
        yield name, result.chain
    yield TRUTH, TransformChain((Link(phantom.displacement),))


def _measure(phantom: Phantom, maps: VentilationMaps) -> list[float]:
    """Return how far the breath's volume is off in percent, det J in the mean, rank correlations, the HU's median.

    Ranks are compared with those of the exact det J - 1 after both were smoothed by `SCALE`.
    """
    grid = phantom.fixed.grid
    true = np.full(grid.shape, np.nan)
    inside = phantom.fixed_mask.array > 0
    true[inside] = phantom.motion.jacobian_determinant(grid.points()[inside]) - 1
    found, by_hounsfield = maps.jacobian_ventilation(), maps.hounsfield_ventilation()
    assert by_hounsfield is not None
    known = np.isfinite(found.array)
    breath, wanted = found.array[known].sum(dtype=float), true[known].sum()
    values = []
    for image in (found, by_hounsfield):
        both = np.isfinite(image.array) & inside
        smooth, smooth_true = (_smoothed(each, both, grid.spacing) for each in (image.array, true))
        same = np.ptp(smooth[both]) < 1e-3  # as under a matrix: ranks would be those of rounding
        values.append(np.nan if same else float(stats.spearmanr(smooth[both][::5], smooth_true[both][::5]).statistic))
    both = np.isfinite(by_hounsfield.array)
    off = float(np.median(by_hounsfield.array[both])) - float(np.median(true[both]))
    return [100 * abs(breath / wanted - 1), float(np.abs(found.array - true)[known].mean()), *values, abs(off)]


def _smoothed(values: np.ndarray, inside: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    sigma = [SCALE / s for s in reversed(spacing)]
    weight = ndimage.gaussian_filter(inside.astype(float), sigma)
    return ndimage.gaussian_filter(np.where(inside, values, 0.0), sigma) / np.maximum(weight, 1e-3)


if __name__ == "__main__":
    sys.exit(main())
