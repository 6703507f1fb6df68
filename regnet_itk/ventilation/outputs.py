"""What is written of ventilation: maps as images, a table, a record, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.report.table_text import format_rows
from regnet_itk.ventilation.maps import VentilationMaps
from regnet_itk.ventilation.picture import draw_ventilation
from regnet_itk.ventilation.regions import RegionRow
from regnet_itk.versions import package_versions

TABLE, RECORD, PICTURE = "ventilation.csv", "ventilation.json", "ventilation.png"
VENTILATION_FILES = OutputFiles(
    r"ventilation\.(csv|json|png)|ventilation_(jacobian|hu)\.mha|density_change\.mha", RECORD
)

_COLUMNS: dict[str, tuple[str, float, int]] = {
    "region": ("region", 1, 0),
    "known_share": ("known_percent", 100, 1),
    "exhale_ml": ("exhale_volume_ml", 1, 1),
    "inhale_ml": ("inhale_volume_ml", 1, 1),
    "jacobian_ventilation": ("ventilation_percent", 100, 2),
    "share_of_ventilation": ("share_of_ventilation_percent", 100, 2),
    "jacobian_median": ("jacobian_ventilation_median_percent", 100, 2),
    "jacobian_sd": ("jacobian_ventilation_sd_percent", 100, 2),
    "hu_median": ("hu_ventilation_median_percent", 100, 2),
    "hu_sd": ("hu_ventilation_sd_percent", 100, 2),
    "rank_correlation": ("rank_correlation", 1, 3),
    "fixed_density": ("fixed_density_g_per_l", 1, 2),
    "moving_density": ("moving_density_g_per_l", 1, 2),
    "fixed_mass": ("fixed_mass_g", 1, 2),
    "moving_mass": ("moving_mass_g", 1, 2),
    "density_change": ("density_change_g_per_l", 1, 2),
}
"""The heading of each of a row's values, what it is multiplied by, and its decimals."""


def write_ventilation(
    maps: VentilationMaps, rows: Sequence[RegionRow], folder: str | Path, fixed: Image,
    *, told: Mapping[str, str] | None = None, warnings: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the maps (.mha, on the fixed grid), ``ventilation.csv``, ``.json`` and ``.png``, whole or not at all.

    Parameters
    ----------
    maps : VentilationMaps
    rows : sequence of RegionRow
    folder : str or Path
        Created if needed.
    fixed : Image
        For the picture.
    told : mapping of str to str, optional
        What else the record is to say: files, the run.
    warnings : sequence of str
        What a reader has to know.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    values = [_row(row) for row in rows]
    with staged_folder(folder, VENTILATION_FILES) as stage:
        for name, image in maps.files():
            write_image(image, stage / name)
        table = [["" if value is None else value for value in row.values()] for row in values]
        (stage / TABLE).write_text(format_rows([list(values[0]), *table]), "utf-8")
        (stage / PICTURE).write_bytes(draw_ventilation(fixed, maps))
        (stage / RECORD).write_text(json.dumps(_record(maps, values, told or {}, warnings), indent=2) + "\n", "utf-8")


def _row(row: RegionRow) -> dict[str, Any]:
    found = asdict(row)
    return {
        heading: value if isinstance(value := found[name], str) or value is None else round(value * factor, digits)
        for name, (heading, factor, digits) in _COLUMNS.items()
    }


def _record(
    maps: VentilationMaps, values: Sequence[Mapping[str, Any]], told: Mapping[str, str], warnings: Sequence[str]
) -> dict[str, Any]:
    return {
        "versions": package_versions(),
        "inputs": dict(told),
        "warnings": list(warnings),
        "inhale": maps.inhale,
        "smoothing_mm": maps.smoothing if maps.densities is not None else None,
        "mass_factor": maps.mass_factor,
        "beyond_the_moving_image": maps.beyond,
        "folded": maps.folded,
        "regions": list(values),
    }
