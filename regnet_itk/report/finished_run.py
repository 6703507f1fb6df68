"""The folder that a registration wrote, read back to be looked at: its images, transforms, landmarks and record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from regnet_itk.data.image import Image, check_mask
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import check_landmarks, read_landmarks
from regnet_itk.data.suffixes import without_suffix
from regnet_itk.errors import ImageError, ParameterError, RegistrationError
from regnet_itk.inputs import is_file
from regnet_itk.metrics.inverse_consistency import InverseConsistency
from regnet_itk.metrics.measures import summarise_errors
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registered_pair import RegisteredPair, choose_overview_grid
from regnet_itk.metrics.registry import known_metrics
from regnet_itk.parameters import ParameterMap
from regnet_itk.report.elements import Cell, Column, Figure, Note, Table, Value
from regnet_itk.report.page import write_report
from regnet_itk.report.viewer import LONGEST_AXIS, MASKS, ViewerMethod, ViewerPair, measure_residuals
from regnet_itk.result_files import RECORD
from regnet_itk.stages.guides import GUIDES, Guides, check_guides
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.trust.error_map import read_error_map
from regnet_itk.trust.verdict import Verdict

PICTURE = "registration.png"

_GUIDED = " The landmarks guided the registration: their TRE is no measure of it."
_INPUTS = (
    "fixed",
    "moving",
    "fixed_mask",
    "fixed_landmarks",
    "moving_landmarks",
    *(f"{role}_{name}" for role, name, _ in MASKS),
)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A registration that was written to a folder.

    Parameters
    ----------
    folder : Path
    record : mapping
        The contents of its ``registration.json``.
    pair : ViewerPair
        Its images, mask and landmarks; its methods are the initial transform, if there was one, and the stages.
    files : mapping of str to Path
        Where the images, mask and landmarks were read.
    warnings : tuple of str
        What the record names and is no longer there.
    guided : bool
        Whether the landmarks guided the registration, and are no measure of it.
    """

    folder: Path
    record: Mapping[str, Any]
    pair: ViewerPair
    files: Mapping[str, Path]
    warnings: tuple[str, ...] = ()
    guided: bool = False

    def verdict_warnings(self) -> list[str]:
        """Return what a reader has to know of the registration, if its verdict is not good."""
        verdict = self.record.get("verdict", {})
        if verdict.get("word") not in ("look", "failed"):
            return []
        return [f"the registration's verdict is '{verdict['word']}': {'; '.join(verdict['reasons'])}".rstrip(": ")]


def read_finished_run(folder: str | Path, **files: str | Path | None) -> FinishedRun:
    """Read what a registration wrote to a folder, and the images that it registered.

    Parameters
    ----------
    folder : str or Path
        The ``-out`` folder of ``regnet-itk run``.
    **files : str or Path, optional
        `fixed`, `moving`, `fixed_mask`, `fixed_landmarks`, `moving_landmarks`, `fixed_ignore`, `moving_ignore`,
        `fixed_rigid`, `fixed_volume`: files to use in place of those that the folder's record names. Of images that
        have moved, one of the same name in the folder or the one above it is found too.

    Raises
    ------
    RegistrationError
        If the folder holds no finished registration.
    ImageError
        If an image is missing, or is not the one that was registered (its size or spacing differ).
    PointsError, TransformError, ParameterError
        If landmarks do not correspond or lie outside, a transform is broken, or landmarks of one image are missing.
    """
    folder = Path(folder)
    record = _read_record(folder)
    paths, warnings = _find_inputs(folder, record, files)
    images = {role: _registered_image(paths[role], role, record) for role in ("fixed", "moving")}
    mask = read_image(paths["fixed_mask"], "fixed mask") if "fixed_mask" in paths else None
    if mask is not None:
        check_mask(mask, images["fixed"], "fixed")
    points = {
        role: read_landmarks(paths[f"{role}_landmarks"], images[role].grid)
        for role in ("fixed", "moving")
        if f"{role}_landmarks" in paths
    }
    if len(points) == 1:
        raise ParameterError(
            "landmarks are needed for both images (`fixed_landmarks` and `moving_landmarks`), or for none"
        )
    if points:
        check_landmarks(points["fixed"], points["moving"], images["fixed"].grid, images["moving"].grid)
    name = f"{without_suffix(paths['moving'])} registered to {without_suffix(paths['fixed'])}"
    pair = ViewerPair(
        name, images["fixed"], images["moving"], _methods(folder, record), mask,
        points.get("fixed"), points.get("moving"),
        fixed_guides=_guides(paths, images, "fixed"), moving_guides=_guides(paths, images, "moving"),
    )  # fmt: skip
    guided = _shows_guides(record, paths.get("fixed_landmarks"))
    return FinishedRun(folder, record, pair, paths, tuple(warnings), guided)


def _guides(paths: Mapping[str, Path], images: Mapping[str, Image], role: str) -> Guides[Image]:
    """Return what was ignored and protected of an image."""
    given = {name: paths[f"{role}_{name}"] for name in GUIDES if f"{role}_{name}" in paths}
    guides: Guides[Image] = Guides(**{name: read_image(path, f"{role} {name} mask") for name, path in given.items()})
    check_guides(guides, images[role], role)
    return guides


def check_finished(folder: Path) -> None:
    """Refuse a folder without the record of a finished registration.

    Raises
    ------
    RegistrationError
    """
    if not is_file(folder / RECORD):
        state = "has no" if folder.is_dir() else "is no folder with a"
        raise RegistrationError(f"'{folder}' {state} {RECORD}: give the output folder of a finished registration")


def _read_record(folder: Path) -> dict[str, Any]:
    check_finished(folder)
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "computed_by" in record:
            raise RegistrationError(
                f"'{folder}': {record['computed_by']} computed this registration, without what a page needs; look at "
                "the result images themselves"
            )
        _check_record(record)
    except OSError as error:
        raise RegistrationError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise RegistrationError(f"'{path}' is damaged, or was not written by regnet-itk run; register again") from None
    return record


def _check_record(record: Any) -> None:
    """Raise if what a report needs is missing, or of another type."""
    for role in ("fixed", "moving"):
        for numbers in (record[role]["size"], record[role]["spacing"]):
            _expect(int | float, *numbers)
            if len(numbers) != 3:
                raise ValueError(role)
    _expect(int, record["initial_transforms"])
    for name in ("inputs", "settings", "versions"):
        _expect(dict, record.get(name, {}))
    _expect(str, *record.get("inputs", {}).values())
    _expect(list, record["stages"])
    for stage in record["stages"]:
        _expect(str, stage["name"], stage.get("source", ""))
        _expect(int | float, stage["seconds"])
        _expect(dict, stage["parameters"])
        _expect(list, *stage["parameters"].values())
    for errors in _recorded_errors(record):
        _expect(int | float | Value | None, *errors)
    describe_verdict(record)
    _both_ways(record)


def _expect(kind: type | UnionType, *values: Any) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(value)
        if isinstance(value, int):
            float(value)


def _find_inputs(
    folder: Path, record: Mapping[str, Any], given: Mapping[str, str | Path | None]
) -> tuple[dict[str, Path], list[str]]:
    """Return where the inputs lie, and what is said of those that are missing but can be done without."""
    unknown = set(given) - set(_INPUTS)
    if unknown:
        raise ParameterError(f"there is no input '{unknown.pop()}'; known are {', '.join(_INPUTS)}")
    found, warnings = {}, []
    recorded = record.get("inputs", {})
    for name in _INPUTS:
        path = given.get(name)
        judges = name.replace("landmarks", "judge_landmarks")
        if path is not None:
            found[name] = Path(path)
        elif name in recorded or judges in recorded:
            old = Path(recorded[judges if judges in recorded else name])
            there = next((p for p in (old, folder / old.name, folder.parent / old.name) if os.path.exists(p)), None)
            if there is not None:
                found[name] = there
            elif name not in ("fixed", "moving"):
                warnings.append(f"the {name.replace('_', ' ')} '{old}' is no longer there; give `{name}` to use it")
        if name in ("fixed", "moving") and name not in found:
            where = (
                f"'{recorded[name]}' is no longer there" if name in recorded else f"'{folder}' does not say where it is"
            )
            raise ImageError(f"the {name} image is missing: {where}; give it with `{name}`")
    half = {"fixed_landmarks", "moving_landmarks"} & set(found)
    if warnings and len(half) == 1 and given.get(next(iter(half))) is None:
        del found[half.pop()]  # the other one's absence is told already
    return found, warnings


def _shows_guides(record: Mapping[str, Any], landmarks: Path | None) -> bool:
    """Say whether the landmarks that are shown, or whose errors are recorded, are those that guided the registration.

    Their file may have moved, and is then known by its name.
    """
    if landmarks is None:
        return any(stage.get("landmarks", {}).get("guided", False) for stage in record["stages"])
    guides = record.get("inputs", {}).get("fixed_landmarks", "")
    return bool(record.get("settings", {}).get("guided_by_landmarks")) and Path(guides).name == landmarks.name


def _registered_image(path: Path, role: str, record: Mapping[str, Any]) -> Image:
    image = read_image(path, f"{role} image")
    size, spacing = tuple(record[role]["size"]), tuple(record[role]["spacing"])
    same = image.grid.size == size and all(
        abs(a - b) <= 1e-4 * b for a, b in zip(image.grid.spacing, spacing, strict=True)
    )
    if not same:
        raise ImageError(
            f"'{path}' is not the {role} image that was registered: size {image.grid.size} and spacing "
            f"{image.grid.spacing} against {size} and {spacing}; give that with `{role}`"
        )
    return image


def _methods(folder: Path, record: Mapping[str, Any]) -> list[ViewerMethod]:
    """Return the transform before the stages, if there was one, and that after each of them."""
    methods = []
    if record["initial_transforms"]:
        chain = read_chain(folder / f"InitialTransform.{record['initial_transforms'] - 1}.txt")
        methods.append(ViewerMethod("initial transform", chain))
    for number, stage in enumerate(record["stages"]):
        chain = read_chain(folder / f"TransformParameters.{number}.txt")
        error_map = folder / f"errorMap.{number}.mha"
        expected = read_error_map(error_map) if error_map.is_file() else None
        methods.append(ViewerMethod(f"{number} {stage['name']}", chain, expected))
    return methods


def write_run_report(run: FinishedRun, path: str | Path, longest_axis: int = LONGEST_AXIS) -> None:
    """Write the report of a finished registration, whole or not at all; see :func:`write_report`.

    Parameters
    ----------
    run : FinishedRun
    path : str or Path
        The file (.html).
    longest_axis : int
        Voxels along the longest axis of the viewer's volumes, at most.
    """
    picture = run.folder / PICTURE
    figures = []
    if picture.is_file():
        alt = "Axial, coronal and sagittal plane of the fixed, moving and warped image, their differences, and |u|"
        figures.append(Figure("Overview", picture, alt))
    write_report(
        path,
        run.pair.name,
        tables=[tabulate_stages(run)],
        figures=figures,
        pairs=[run.pair],
        notes=_notes(run),
        summary=_summary(run),
        longest_axis=longest_axis,
    )


def tabulate_stages(run: FinishedRun) -> Table:
    """Return the table of a registration's stages: time, landmark error and the metrics of single runs after each."""
    before = _registered_pair(run, None)
    metrics = [metric for metric in known_metrics() if metric.of_runs and metric.applies_to(before)]
    stages, errors = run.record["stages"], _error_rows(run)
    rows: list[list[Cell]] = [["no registration", None, *errors[0], *_metric_cells(run, None, metrics)]]
    first = len(run.pair.methods) - len(stages)
    for number, method in enumerate(run.pair.methods):
        seconds = stages[number - first]["seconds"] if number >= first else None
        rows.append([method.name, seconds, *errors[number + 1], *_metric_cells(run, method, metrics)])
    columns = [
        Column("after"),
        Column("time", "s", digits=1),
        Column("TRE, mean ± SD", "mm", "lowest"),
        Column("median", "mm", "lowest", 2),
        Column("largest", "mm", "lowest", 2),
        *map(_metric_column, metrics),
    ]
    of_landmarks = (2, 3, 4)
    keep = [i for i in range(len(columns)) if i not in of_landmarks or any(row[i] is not None for row in rows)]
    return Table("Stages", [columns[i] for i in keep], [[row[i] for i in keep] for row in rows], _stages_caption(run))


def _metric_column(metric: Metric) -> Column:
    best: Literal["lowest", "highest"] | None = None
    if metric.better is not None:
        best = "lowest" if metric.better == "lower" else "highest"
    digits = None if metric.unit == "%" else metric.digits  # a share may be tiny: three digits that count
    return Column(metric.heading.replace("<=", "\N{LESS-THAN OR EQUAL TO}"), metric.unit, best, digits)


def _registered_pair(run: FinishedRun, method: ViewerMethod | None) -> RegisteredPair:
    """Return the pair after a method, or before any; its warped image is interpolated linearly."""
    pair = run.pair
    return RegisteredPair(
        pair.fixed, pair.moving, TransformChain() if method is None else method.chain, pair.fixed_mask,
        fixed_landmarks=pair.fixed_landmarks, moving_landmarks=pair.moving_landmarks, order=1,
    )  # fmt: skip


def _metric_cells(run: FinishedRun, method: ViewerMethod | None, metrics: Sequence[Metric]) -> list[Cell]:
    registered = _registered_pair(run, method)
    return [_metric_cell(metric, registered) if method or metric.before else None for metric in metrics]


def _metric_cell(metric: Metric, pair: RegisteredPair) -> float | None:
    try:
        return metric.shown(metric.measure(pair))
    except ImageError:  # a mask may be thinner than the voxels on which is measured
        return None


def _stages_caption(run: FinishedRun) -> str:
    where = "in the fixed mask" if run.pair.fixed_mask is not None else "in the whole fixed image"
    spacing = " x ".join(f"{s:.3g}" for s in choose_overview_grid(run.pair.fixed.grid).spacing)
    return (
        f"Correlation of the fixed with the warped image, and the share of folding, {where}; "
        f"det J on voxels of {spacing} mm." + _GUIDED * run.guided
    )


def _error_rows(run: FinishedRun) -> list[list[Cell]]:
    """Return the cells of the landmark errors before and after each method: of the landmarks, or as recorded."""
    measured = [measure_residuals(run.pair, method) for method in (None, *run.pair.methods)]
    if measured[0] is not None:
        return [_error_cells(asdict(summarise_errors(vectors))) for vectors in measured if vectors is not None]
    recorded = _recorded_errors(run.record)
    if run.record["initial_transforms"]:
        recorded.insert(0, _error_cells(None))  # what was recorded first is the error of the transform to start from
    return recorded


def _recorded_errors(record: Mapping[str, Any]) -> list[list[Cell]]:
    """Return the cells of the landmark errors before the stages and after each."""
    entries = [record.get("landmarks_before"), *(stage.get("landmarks") for stage in record["stages"])]
    return [_error_cells(entry) for entry in entries]


def _error_cells(error: Mapping[str, float] | None) -> list[Cell]:
    if error is None:
        return [None, None, None]
    return [Value(error["mean"], f"{error['mean']:.2f} ± {error['sd']:.2f}"), error["median"], error["max"]]


def _summary(run: FinishedRun) -> str:
    record, parts = run.record, []
    seconds = sum(stage["seconds"] for stage in record["stages"])
    names = ", ".join(str(stage["name"]) for stage in record["stages"])
    count = len(record["stages"])
    parts.append(f"{count} stage{'s' if count != 1 else ''} ({names}) in {seconds:.1f} s.")
    parts += [_GUIDED.strip()] * run.guided
    parts += describe_verdict(record)
    parts += _both_ways(record)
    parts += [f"Warning: {warning}." for warning in run.warnings]
    return " ".join(parts)


def describe_verdict(record: Mapping[str, Any]) -> list[str]:
    """Return a sentence with the verdict, and one with the expected error, if the record has them."""
    parts = []
    if "verdict" in record:
        found = Verdict(record["verdict"]["word"], tuple(record["verdict"]["reasons"]))
        parts.append(f"V{found.describe()[1:]}.")
    told = record.get("expected_error", {})
    if "mean_mm" in told:
        parts.append(
            f"Expected error in the {told['region']}: {told['mean_mm']:.2g} mm in the mean, above "
            f"{told['a_tenth_above_mm']:.2g} mm in a tenth of it."
        )
    return parts


def _both_ways(record: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the inverse consistency, if the images were registered both ways."""
    if "inverse_consistency" not in record:
        return []
    return [f"Registered both ways: {InverseConsistency(**record['inverse_consistency']).describe()}."]


def _notes(run: FinishedRun) -> list[Note]:
    """Return what the record says: images, stages with their models, versions, and the parameter maps.

    Of files the name is told, not the folder: pages are passed on, and folders are often named after patients.
    """
    record = run.record
    inputs = {}
    for role in ("fixed", "moving"):
        told = record[role]
        size, spacing = " x ".join(map(str, told["size"])), " x ".join(f"{s:.4g}" for s in told["spacing"])
        inputs[f"{role} image"] = f"{size} voxels of {spacing} mm, {told.get('pixel_type', '')}"
    inputs |= {f"file of the {name.replace('_', ' ')}": path.name for name, path in run.files.items()}
    inputs |= {name: str(value) for name, value in record.get("settings", {}).items() if value is not None}
    notes = [Note("Images and settings", inputs)]
    left_out = ("stage", "name", "parameters", "landmarks", "seconds")
    for number, stage in enumerate(record["stages"]):
        told = {key.replace("_", " "): _short(value) for key, value in stage.items() if key not in left_out}
        if "source" in told:
            told["source"] = Path(told["source"]).name
        notes.append(Note(f"Stage {number}: {stage['name']}", told))
    notes.append(Note("Versions", {name: str(value) for name, value in record.get("versions", {}).items()}))
    for number, stage in enumerate(record["stages"]):
        parameters = ParameterMap({key: tuple(map(str, values)) for key, values in stage["parameters"].items()})
        notes.append(Note(f"Parameters of stage {number}: {stage['name']}", parameters.to_text(), folded=True))
    return notes


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
