"""What a follow-up writes: a table, the same with all details for programs, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regnet_itk.followup.findings import Finding
from regnet_itk.followup.lesions import Lesion
from regnet_itk.followup.pictures import Scans, draw_each
from regnet_itk.followup.study import FollowUp
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.report.elements import Cell, Column, Figure, Note, Table
from regnet_itk.report.page import write_report
from regnet_itk.report.table_text import format_rows
from regnet_itk.versions import package_versions

TABLE, RECORD, PAGE = "follow_up.csv", "follow_up.json", "follow_up.html"
FOLLOW_UP_FILES = OutputFiles(r"follow_up\.(csv|json|html)", RECORD)

_PER_CENT, _CM3 = 100.0, 1e-3
_CAPTION = (
    "Volumes and diameters are those in each image itself. Grown and shrunk: by 25 % of the volume or more. Diameters "
    "are the longest of an axial slice; of lesions that split, their sum. Distance: from where the transform takes the "
    "centre in the fixed image to the centre in the moving one; the gate is how far that might be off."
)


def write_follow_up(
    found: FollowUp, folder: str | Path, scans: Scans, title: str = "Follow-up",
    *, told: Mapping[str, str] | None = None, warnings: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write ``follow_up.csv``, ``follow_up.json`` and ``follow_up.html`` into a folder, whole or not at all.

    Parameters
    ----------
    found : FollowUp
    folder : str or Path
        Created if needed.
    scans : Scans
        The images, for pictures of each lesion.
    title : str
        Of the page.
    told : mapping of str to str, optional
        What else the page and the record are to say: files, the run.
    warnings : sequence of str
        What a reader has to know.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with staged_folder(folder, FOLLOW_UP_FILES) as stage:
        (stage / TABLE).write_text(format_rows([list(_row(found.findings[0])), *map(_values, found.findings)]), "utf-8")
        (stage / RECORD).write_text(json.dumps(_record(found, told or {}, warnings), indent=2) + "\n", "utf-8")
        write_report(
            stage / PAGE, title, tables=[_table(found)], figures=_figures(found, scans),
            notes=_notes(told or {}), summary=_summary(found, warnings),
        )  # fmt: skip


def _values(finding: Finding) -> list[object]:
    return ["" if value is None else value for value in _row(finding).values()]


def _row(finding: Finding) -> dict[str, object]:
    """Return a row of the table: millimetres, days and percent."""
    group = finding.group
    before, after = finding.volumes
    first, last = finding.diameters
    row: dict[str, object] = {"finding": finding.number, "status": finding.status}
    for name, lesions in (("baseline", finding.baseline), ("follow_up", finding.follow_up)):
        row[name] = "+".join(lesion.name for lesion in lesions)
        for axis, value in zip("xyz", _centre(lesions), strict=True):
            row[f"{name}_{axis}_mm"] = value
    return row | {
        "baseline_volume_mm3": _round(before), "follow_up_volume_mm3": _round(after),
        "volume_change_percent": _round(finding.volume_change, _PER_CENT, 1),
        "volume_doubling_time_days": _round(finding.doubling_time, digits=0),
        "volume_growth_percent_per_year": _round(finding.growth_per_year, _PER_CENT, 1),
        "baseline_diameter_mm": _round(first), "follow_up_diameter_mm": _round(last),
        "baseline_across_mm": _across(finding.baseline), "follow_up_across_mm": _across(finding.follow_up),
        "diameter_change_mm": _round(finding.diameter_change),
        "distance_mm": _round(group.distance), "gate_mm": _round(group.gate),
        "expected_error_mm": _round(group.error.expected), "radius_90_mm": _round(group.error.radius),
        "notes": "; ".join(finding.notes),
    }  # fmt: skip


def _round(value: float | None, factor: float = 1.0, digits: int = 2) -> float | int | None:
    if value is None or value * factor in (float("inf"), float("-inf")):
        return None
    return round(value * factor, digits) if digits else round(value * factor)


def _centre(lesions: Sequence[Lesion]) -> list[float | int | None]:
    if not lesions:
        return [None, None, None]
    return [_round(float(sum(lesion.centre[axis] for lesion in lesions)) / len(lesions)) for axis in range(3)]


def _across(lesions: Sequence[Lesion]) -> float | int | None:
    return _round(lesions[0].across) if len(lesions) == 1 else None


def _record(found: FollowUp, told: Mapping[str, str], warnings: Sequence[str]) -> dict[str, Any]:
    visits = found.visits
    dates = {"fixed": visits.fixed_date, "moving": visits.moving_date}
    return {
        "versions": package_versions(),
        "baseline": visits.baseline,
        "dates": {role: None if day is None else day.isoformat() for role, day in dates.items()},
        "days": visits.days,
        "inputs": dict(told),
        "warnings": list(warnings),
        "summary": found.describe(),
        "findings": [_details(finding) for finding in found.findings],
    }


def _details(finding: Finding) -> dict[str, Any]:
    group = finding.group
    place = None if group.elsewhere is None else [_round(float(c)) for c in group.elsewhere]
    return {
        **_row(finding),
        "notes": list(finding.notes),
        "place_in_the_other_image_mm": place,
        "error": asdict(group.error),
        "lesions": {
            name: [_lesion(lesion) for lesion in lesions]
            for name, lesions in (("baseline", finding.baseline), ("follow_up", finding.follow_up))
        },
    }


def _lesion(lesion: Lesion) -> dict[str, Any]:
    return {
        "name": lesion.name, "centre_mm": [_round(float(c)) for c in lesion.centre],
        "volume_mm3": _round(lesion.volume), "voxels": _round(lesion.voxels, digits=0),
        "longest_diameter_mm": _round(lesion.longest), "across_mm": _round(lesion.across),
        "effective_diameter_mm": _round(lesion.effective), "cut_by_the_border": lesion.cut,
    }  # fmt: skip


def _table(found: FollowUp) -> Table:
    columns = [
        Column("lesion"), Column("status"), Column("volume before", "cm³", digits=2),
        Column("after", "cm³", digits=2), Column("change", "%", digits=0), Column("doubles in", "days", digits=0),
        Column("diameter before", "mm", digits=1), Column("after", "mm", digits=1), Column("change", "mm", digits=1),
        Column("distance", "mm", digits=1), Column("gate", "mm", digits=1), Column("notes"),
    ]  # fmt: skip
    return Table("Lesions", columns, [_shown(finding) for finding in found.findings], _CAPTION)


def _shown(finding: Finding) -> list[Cell]:
    def scaled(value: float | None, factor: float) -> float | None:
        return None if value is None else value * factor

    return [
        finding.name, finding.status, *(scaled(volume, _CM3) for volume in finding.volumes),
        scaled(finding.volume_change, _PER_CENT), finding.doubling_time, *finding.diameters, finding.diameter_change,
        finding.group.distance, finding.group.gate, "; ".join(finding.notes),
    ]  # fmt: skip


def _figures(found: FollowUp, scans: Scans) -> list[Figure]:
    figures = []
    for finding, picture in zip(found.findings, draw_each(found.findings, found.visits, scans), strict=True):
        alt = "An axial plane of the baseline, of the follow-up, and the moving image warped to the fixed one"
        figures.append(Figure(f"{finding.name}: {finding.status}", picture, alt, _caption(finding)))
    return figures


def _caption(finding: Finding) -> str:
    parts = []
    if finding.volume_change is not None:
        before, after = finding.volumes
        assert before is not None and after is not None
        parts.append(f"{before * _CM3:.2f} to {after * _CM3:.2f} cm³ ({finding.volume_change:+.0%}).")
    parts += [f"{note[0].upper()}{note[1:]}." for note in finding.notes]
    return " ".join(parts)


def _summary(found: FollowUp, warnings: Sequence[str]) -> str:
    described = found.visits.describe()
    return " ".join(
        [f"{described[0].upper()}{described[1:]}.", f"{found.describe()}.", *(f"Warning: {w}." for w in warnings)]
    )


def _notes(told: Mapping[str, str]) -> list[Note]:
    how = (
        "Blue outlines are of the baseline, orange ones of the follow-up; a white cross is where the transform says "
        "that a lesion would lie that was not marked there. Planes are axial, the patient's right at the left; the bar "
        "is 10 mm. In the third picture the moving image is warped to the fixed one, and outlines with it."
    )
    notes = [Note("How to read the pictures", how)]
    return [*notes, Note("Made from", {name: Path(value).name for name, value in told.items()})] if told else notes
