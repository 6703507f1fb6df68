"""Draw what weights of smoothness look like: ``python pipelines/draw_smoothness.py FILE.png``.

A coronal slice of a digital chest that breathes: a grid as the displacement field bends it, and det J, for the network
alone and with instance optimisation of several smoothness.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from smoothness_benchmark import settings

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult

SHOWN = ("network alone", "0.005", "0.02", "0.1", "0.5")
SPACING = (1.6, 1.6, 2.0)
_LINES = 8.0  # mm apart
_PART = ((20.0, 125.0), (-110.0, 60.0))  # of x and z, mm from the middle


def main() -> int:
    """Register a phantom with each weight, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=70)
    given = parser.parse_args()
    phantom = make_phantom(given.seed, spacing=SPACING)
    start = register(phantom.fixed, phantom.moving, "affine")
    assert isinstance(start, RegistrationResult)
    figure, axes = plt.subplots(2, len(SHOWN), figsize=(15, 9), constrained_layout=True)
    points = phantom.fixed.grid.points() - phantom.fixed.grid.centre()
    middle = phantom.fixed.grid.size[1] // 2
    x, z = points[0, 0, :, 0], points[:, 0, 0, 2]
    columns, rows = ((along >= low) & (along <= high) for along, (low, high) in zip((x, z), _PART, strict=True))
    lungs = phantom.fixed_mask.array > 0
    for (above, below), name in zip(axes.T, SHOWN, strict=True):
        result = register(phantom.fixed, phantom.moving, settings()[name], initial=start.chain)
        assert isinstance(result, RegistrationResult)
        u = result.displacement.vectors
        error = float(np.linalg.norm(u - phantom.displacement.vectors, axis=-1)[lungs].mean())
        section = u[rows][:, middle][:, columns]
        shown = phantom.fixed.array[rows][:, middle][:, columns]
        extent = (x[columns][0], x[columns][-1], z[rows][0], z[rows][-1])
        above.imshow(shown, cmap="gray", vmin=-1000, vmax=300, origin="lower", extent=extent, alpha=0.5)
        for of_line, length in ((_every(x[columns]), "x"), (_every(z[rows]), "z")):
            for k in of_line:
                line = section[:, k] if length == "x" else section[k]
                px = (x[columns][k] if length == "x" else x[columns]) + line[:, 0]
                pz = (z[rows] if length == "x" else z[rows][k]) + line[:, 2]
                above.plot(px, pz, color="tab:orange", linewidth=0.8)
        above.set_xlim(*extent[:2])
        above.set_ylim(*extent[2:])
        above.set_title(f"{name}\n{error:.2f} mm", fontsize=12)
        determinant = result.displacement.jacobian_determinant()[rows][:, middle][:, columns]
        seen = below.imshow(determinant, cmap="RdBu", vmin=0.5, vmax=1.5, origin="lower", extent=extent)
        for axis in (above, below):
            axis.set_axis_off()
    figure.colorbar(seen, ax=axes[1], label="det J", shrink=0.8)
    figure.savefig(given.file, dpi=70)
    return 0


def _every(along: np.ndarray) -> np.ndarray:
    """Return the indices of voxels that lie one line's distance apart."""
    return np.arange(0, len(along), max(1, round(_LINES / abs(along[1] - along[0]))))


if __name__ == "__main__":
    sys.exit(main())
