"""The paper's figures 2 to 5, of a comparison, with their captions, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_itk.comparison.image_figures import Example, choose_pairs, draw_displacements, draw_images
from regnet_itk.comparison.landmark_figures import draw_all_landmarks, draw_captured_landmarks
from regnet_itk.comparison.outcomes import Comparison
from regnet_itk.outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 160


@dataclass(frozen=True)
class Drawn:
    """A figure as files.

    Parameters
    ----------
    title, caption : str
    png, svg : Path
    """

    title: str
    caption: str
    png: Path
    svg: Path


def write_figures(comparison: Comparison, folder: Path) -> list[Drawn]:
    """Draw the figures for which the pairs have what is needed, as PNG and SVG.

    Parameters
    ----------
    comparison : Comparison
    folder : Path
        Must exist. ``fig2_displacement``, ``fig3_landmarks``, ``fig4_capture_range`` and ``fig5_images`` are written
        there, those of images for the first pair of each group, three at most.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    examples = [Example.read(comparison, pair) for pair in choose_pairs(comparison)]
    landmarks = any(len(comparison.differences(pair, comparison.methods[0])) for pair in comparison.pairs)
    moved = [method.name for method in comparison.registered_methods]
    drawn = []
    if examples and moved:
        caption = (
            "Length of the displacement, in mm, beyond that of the first stage, on a coronal slice: the true one where "
            "it is known, and each method's. The line is the border of the fixed mask."
        )
        figure = draw_displacements(examples, moved)
        drawn.append(_write(figure, folder / "fig2_displacement", "Fig. 2: displacements", caption))
    if landmarks:
        limit = f"{comparison.capture_range:g} mm"
        caption = (
            "Distances of all landmarks after registration. Boxes: quartiles and median; whiskers: 5th and 95th "
            f"percentile. Below, each landmark after a method against after {comparison.reference}; below the diagonal "
            f"it came nearer. The dotted line is the capture range of {limit}."
        )
        figure = draw_all_landmarks(comparison)
        drawn.append(_write(figure, folder / "fig3_landmarks", "Fig. 3: all landmarks", caption))
        caption = (
            f"The landmarks within {limit} after {comparison.reference}: their distances, and the predicted against "
            f"the true displacement beyond {comparison.reference} along each axis."
        )
        figure = draw_captured_landmarks(comparison)
        drawn.append(_write(figure, folder / "fig4_capture_range", "Fig. 4: landmarks in the capture range", caption))
    if examples:
        caption = (
            "Results (upper rows) and the differences fixed - result (lower rows) on a coronal slice; r is the "
            "correlation with the fixed image on this slice, inside the mask if there is one."
        )
        drawn.append(_write(draw_images(examples), folder / "fig5_images", "Fig. 5: results and differences", caption))
    return drawn


def _write(figure: Figure, base: Path, title: str, caption: str) -> Drawn:
    files = [base.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        write_whole(file, lambda part: figure.savefig(part, dpi=_DPI))
    return Drawn(title, caption, *files)
