"""Draw the error of a registration of lungs that slide: ``python pipelines/draw_sliding.py FILE.png``.

A coronal slice of a digital chest whose lungs and belly slide along the wall: the error of one smooth field, of lungs
that may slide, and of all within the wall.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sliding_benchmark import LUNGS, SPACING, WALL, methods

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult

SHOWN = {
    "regnet_multistage": "one smooth field\nerror",
    LUNGS: '(RegNetSliding "lungs")\nerror',
    WALL: "-fSliding: all within the wall\nerror",
}
MOST = 15.0  # mm


def main() -> int:
    """Register a phantom in all ways, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=201)
    given = parser.parse_args()
    phantom = make_phantom(given.seed, "sliding", spacing=SPACING)
    assert phantom.fixed_sliding is not None
    start = register(phantom.fixed, phantom.moving, "affine")
    assert isinstance(start, RegistrationResult)
    figure, axes = plt.subplots(1, len(SHOWN) + 1, figsize=(15, 3.9), constrained_layout=True)
    middle = phantom.fixed.grid.size[1] // 2 - 12
    sx, _, sz = phantom.fixed.grid.spacing
    for axis, (name, title) in zip(axes, {"": "true displacement\n", **SHOWN}.items(), strict=True):
        if name:
            stage, guides = methods(phantom)[name]
            result = register(phantom.fixed, phantom.moving, stage, initial=start.chain, fixed_guides=guides)
            assert isinstance(result, RegistrationResult)
            shown = result.displacement.vectors - phantom.displacement.vectors
        else:
            shown = phantom.displacement.vectors
        lengths = np.linalg.norm(shown[:, middle], axis=-1)
        body = phantom.fixed.array[:, middle] > -950
        options = {"origin": "lower", "aspect": sz / sx}
        axis.imshow(phantom.fixed.array[:, middle], cmap="gray", vmin=-1000, vmax=300, **options)
        most = MOST if name else 30.0
        seen = axis.imshow(np.ma.masked_array(lengths, ~body), cmap="magma", vmin=0, vmax=most, alpha=0.75, **options)
        axis.contour(phantom.fixed_sliding.array[:, middle], [0.5], colors="cyan", linewidths=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        figure.colorbar(seen, ax=axis, label="mm", shrink=0.8)
    figure.savefig(given.file, dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
