"""What a page holds for its viewer: the volumes of all pairs, and a description of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.anatomy.display import Display, find_display
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.figures.slices import VIEWS, View
from regnet_itk.report.viewer import (
    CODES,
    FOLDED,
    MARGIN,
    MASKS,
    ViewerPair,
    choose_first_shown,
    choose_viewer_grid,
    measure_residuals,
    sample_volumes,
)

if TYPE_CHECKING:
    from markupsafe import Markup

# all are told apart by the colour-blind; those of lengths are perceptually uniform, the others white in the middle
_COLOUR_MAPS = {"displacement": "viridis", "difference": "RdBu_r", "jacobian": "PuOr", "error": "magma"}


@dataclass(frozen=True)
class ViewerData:
    """What the viewer's script reads.

    Parameters
    ----------
    volumes : tuple of pairs of str
        The name of each volume's element, and its packed codes in base64.
    description : str
        JSON that may stand in a page as it is: what the volumes are, and how they are shown.
    """

    volumes: tuple[tuple[str, str], ...]
    description: Markup


def pack_viewer(pairs: Iterable[ViewerPair], longest_axis: int) -> ViewerData | None:
    """Return the volumes of all pairs with what describes them; None without pairs.

    Parameters
    ----------
    pairs : iterable of ViewerPair
        Taken one at a time.
    longest_axis : int
        Voxels along the longest axis of a volume, at most.
    """
    from markupsafe import Markup

    described: list[dict[str, Any]] = []
    volumes: list[tuple[str, str]] = []
    for number, pair in enumerate(pairs):
        grid = choose_viewer_grid(pair, longest_axis)
        folded, heads = [], {}
        for volume in sample_volumes(pair, grid):
            heads[volume.name] = {"low": volume.low, "high": volume.high}
            if volume.name.endswith("jacobian"):
                folded.append(int((volume.codes == FOLDED).sum()))
            volumes.append((f"pair-{number}-{volume.name}", base64.b64encode(volume.packed()).decode()))
        described.append({**_described(pair, grid), "volumes": heads, "methods": _methods(pair, folded)})
    if not described:
        return None
    content = {"pairs": described, "planes": [_plane(view) for view in VIEWS], "colours": _colours()}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return ViewerData(tuple(volumes), Markup(text))


def _described(pair: ViewerPair, grid: Grid) -> dict[str, Any]:
    display = find_display(pair.fixed, pair.moving)
    landmarks = pair.fixed_landmarks
    return {
        "name": pair.name,
        "size": grid.size,
        "spacing": grid.spacing[0],
        "origin": grid.origin,
        "unit": display.unit if display else "",
        "shown": choose_first_shown(pair, grid),
        "landmarks": None if landmarks is None else landmarks.points.round(3).tolist(),
        "names": None if landmarks is None else landmarks.names,
        "before": _rounded(measure_residuals(pair, None)),
        "masks": [
            words if getattr(pair.fixed_guides if role == "fixed" else pair.moving_guides, name) is not None else None
            for role, name, words in MASKS
        ],
        "remark": _remark(pair, grid, display),
    }


def _remark(pair: ViewerPair, grid: Grid, display: Display | None) -> str:
    """Say what was made of the images for the viewer."""
    sx, sy, sz = pair.fixed.grid.spacing
    corners = pair.fixed.grid.corners()
    is_part = (np.ptp(corners, axis=0) > (np.asarray(grid.size) + 1) * grid.spacing).any()
    region = f"fixed mask and {MARGIN:.0f} mm around it" if pair.fixed_mask is not None else "body"
    part = f"cut to the {region}, " if is_part else ""
    steps = ""
    if display is not None:
        (low, high), unit = display.span, display.unit
        steps = f" between {low:.0f} and {high:.0f} {unit}, in steps of {(high - low) / (CODES - 1):.0f} {unit}"
    return (
        f"To look at, not to measure: the fixed image ({sx:.3g} x {sy:.3g} x {sz:.3g} mm) is {part}resampled to cubes "
        f"of {grid.spacing[0]:.3g} mm along the patient's axes, with values of 8 bits{steps}; the others likewise. "
        "det J is taken by central differences between these voxels. Positions are in the space of the fixed image, "
        "in mm to the right or left (R, L), front or back (A, P), and feet or head (F, H) of its zero."
    )


def _methods(pair: ViewerPair, folded: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "name": method.name, "residuals": _rounded(measure_residuals(pair, method)), "folded": count,
            "worst": [] if method.expected_error is None else method.expected_error.worst_places(),
        }
        for method, count in zip(pair.methods, folded, strict=True)
    ]  # fmt: skip


def _rounded(vectors: FloatArray | None) -> list[list[float]] | None:
    rounded: list[list[float]] | None = None if vectors is None else vectors.round(3).tolist()
    return rounded


def _plane(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "across": view.across,
        "right": view.right,
        "down": view.down,
        "sign": view.down_sign,
        "letters": view.edge_letters,
    }


def _colours() -> dict[str, str]:
    """Return 256 colours (r, g, b) for each coloured map, in base64."""
    from matplotlib import colormaps

    return {
        mode: base64.b64encode(colormaps[name](range(256), bytes=True)[:, :3].tobytes()).decode()
        for mode, name in _COLOUR_MAPS.items()
    }
