"""What a file is: an image, displacement field, transform, landmarks, parameters or model, and what looks wrong in it.

A warning is given only where something can be told reliably from the file itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image_files import open_image, read_image
from regnet_itk.data.landmarks import check_inside, read_landmarks
from regnet_itk.data.nifti_files import NIFTI_DISPLACEMENT, read_nifti_intent
from regnet_itk.data.suffixes import (
    FOREIGN_TRANSFORM_SUFFIXES,
    IMAGE_SUFFIXES,
    ITK_SUFFIXES,
    LANDMARK_SUFFIXES,
    MODEL_SUFFIX,
    NIFTI_SUFFIXES,
    PARAMETER_SUFFIXES,
)
from regnet_itk.dicom.files import DEFORMABLE, DOSE, REGISTRATION, STRUCTURES, read_dataset, sop_class
from regnet_itk.errors import DicomError, ImageError, ParameterError, PointsError, TransformError, did_you_mean
from regnet_itk.inputs import FOLDER, why_no_file
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.radiotherapy.dose import read_dose
from regnet_itk.radiotherapy.shapes import stack_planes
from regnet_itk.radiotherapy.structures import read_structures
from regnet_itk.stages.keys import declared_keys
from regnet_itk.stages.registry import check_parameter_map, find_stage
from regnet_itk.transforms.chain import MOST_LINKS, Link, TransformChain
from regnet_itk.transforms.dicom_registration import list_frames, read_registration
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, initial_file, locate_file
from regnet_itk.transforms.elastix_reading import check_start_is_told, file_keys, read_chain, read_transform_map
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.reading import read_field, transform_grid

DIRECTION = "fixed to moving: T(x) = x + u(x) maps points of the fixed image to the moving image"
FRAME = "mm, LPS"
OVERVIEW_SPACING = 2.0
"""mm; a chain is looked at on voxels of this size, or on the fixed image's if they are larger. Fields on their own."""

_LOOKED_AT = 1_000_000  # vectors
_TRANSFORM_SUFFIXES = (*ITK_SUFFIXES, *FOREIGN_TRANSFORM_SUFFIXES)


@dataclass(frozen=True)
class Inspection:
    """What was found out about a file.

    Parameters
    ----------
    path : str
    kind : str
        "image", "displacement field", "elastix transform", "ITK transform", "landmarks", "elastix parameter file",
        "RegNet parameter file", "RegNet model", "image of n components", "DICOM registration", "DICOM deformable
        registration", "DICOM dose", or "DICOM structures".
    facts : mapping
        Name to value; numbers, text, lists and mappings of them. Lengths are in mm, points are (x, y, z), LPS.
    parts : tuple of mapping
        Of a transform: its parts in the order in which registrations found them.
    warnings : tuple of str
    """

    path: str
    kind: str
    facts: Mapping[str, Any]
    parts: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return dataclasses.asdict(self)


def inspect_file(path: str | Path, like: Grid | None = None) -> Inspection:
    """Find out what a file is.

    Parameters
    ----------
    path : str or Path
        A file, or a folder with a DICOM series.
    like : Grid, optional
        The grid of the image that landmarks or a transform belong to, if the file does not say.

    Raises
    ------
    RegNetItkError
        If it is missing, damaged, or of no known kind.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> from regnet_itk import inspect_file
    >>> sitk.WriteTransform(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)), "shift.tfm")
    >>> inspect_file("shift.tfm").kind
    'ITK transform'
    """
    path = Path(path)
    why = why_no_file(path)
    if why == FOLDER:
        return _image(path)
    if why is not None:
        raise TransformError(f"file '{path}' {why}")
    if (dicom := _DICOM_KINDS.get(sop_class(path))) is not None:
        return dicom(path, like)
    suffix = path.suffix.lower()
    if suffix in PARAMETER_SUFFIXES:
        return _text(path, like)
    if suffix in _TRANSFORM_SUFFIXES:
        return _itk_transform(path, like)
    if suffix in LANDMARK_SUFFIXES:
        return _landmarks(path, like)
    if suffix == MODEL_SUFFIX:
        return _model(path)
    return _voxels(path)


# Images and fields


def _voxels(path: Path) -> Inspection:
    import SimpleITK as sitk

    try:
        reader = open_image(path, "image")
    except ImageError:
        if path.name.lower().endswith(IMAGE_SUFFIXES):
            raise
        known = (*IMAGE_SUFFIXES, *PARAMETER_SUFFIXES, *_TRANSFORM_SUFFIXES, *LANDMARK_SUFFIXES, MODEL_SUFFIX)
        given = path.suffix or "no suffix"
        raise TransformError(f"'{path}': nothing is known about '{given}'{did_you_mean(given, known)}") from None
    components, kind = reader.GetNumberOfComponents(), sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if components == 1:
        return _image(path)
    if components == 3 and "float" in kind and reader.GetDimension() == 3:
        return _field(path)
    why = f"it is no displacement field (3 components of float in 3D) and no scalar image, but {kind}"
    facts = {"pixel_type": kind, "size": list(reader.GetSize()), "spacing": list(reader.GetSpacing())}
    return Inspection(str(path), f"image of {components} components", facts, warnings=(why,))


def _image(path: Path) -> Inspection:
    image = read_image(path)
    array = image.array
    finite = np.isfinite(array) if array.dtype.kind == "f" else None
    warnings = []
    if finite is not None and not finite.all():
        warnings.append(f"{int(array.size - finite.sum())} voxels are NaN or infinite")
        array = array[finite]
    facts: dict[str, Any] = {"pixel_type": str(image.array.dtype), "frame": FRAME, **image.grid.to_dict()}
    if array.size:
        facts["values"] = {"min": float(array.min()), "max": float(array.max()), "mean": float(array.mean(dtype=float))}
        if array.min() == array.max():
            warnings.append(f"all voxels are {array.flat[0]}")
    return Inspection(str(path), "image", facts, warnings=tuple(warnings))


def _field(path: Path) -> Inspection:
    u = read_field(path)
    facts: dict[str, Any] = {"maps": DIRECTION, "frame": FRAME, **u.grid.to_dict(), **_magnitudes(u)}
    warnings = _field_warnings(u)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        code, _ = read_nifti_intent(path)
        stored = (
            "RAS (intent code 1006)" if code == NIFTI_DISPLACEMENT else f"LPS, as ITK and ANTs do (intent code {code})"
        )
        facts["nifti_vectors"] = f"read as {stored}"
        if code != NIFTI_DISPLACEMENT:
            warnings.append(
                "NIfTI does not say whether these vectors are LPS (ITK, ANTs) or RAS (others); if a landmark goes the "
                "wrong way, convert the field with `vectors` ras"
            )
    return Inspection(str(path), "displacement field", facts, warnings=tuple(warnings))


def _magnitudes(u: DisplacementField) -> dict[str, Any]:
    """Return how long the vectors are, and where the transform folds."""
    length = np.linalg.norm(u.vectors, axis=-1)
    determinant = u.jacobian_determinant()
    return {
        "displacement": {"mean": float(length.mean(dtype=float)), "max": float(length.max())},
        "det_jacobian": {
            "min": float(determinant.min()),
            "max": float(determinant.max()),
            "share_not_positive": float((determinant <= 0).mean()),
            "spacing": list(u.grid.spacing),
        },
    }


def _field_warnings(u: DisplacementField) -> list[str]:
    """Say what vectors look like that are no displacements in mm."""
    step = math.ceil((math.prod(u.grid.size) / _LOOKED_AT) ** (1 / 3))
    points, vectors = u.grid.every(step).points(), u.vectors[::step, ::step, ::step].astype(float)
    index = u.grid.point_to_index(points)
    flipped = points * np.array([-1.0, -1.0, 1.0])
    for what, values in (("points", points), ("points in RAS", flipped), ("voxel indices", index)):
        left = vectors - values
        if np.ptp(values, axis=(0, 1, 2)).min() > 0 and _spread(left) < 0.2 * _spread(vectors):
            return [f"the vectors look like {what} T(x), not like displacements T(x) - x"]
    if _spread(vectors) > 0 and np.array_equal(vectors, np.round(vectors)):
        return ["all vectors are whole numbers: they look like displacements in voxels, not in mm"]
    return _size_warning(u)


def _spread(vectors: FloatArray) -> float:
    """Return the mean distance of vectors from their mean."""
    return float(np.linalg.norm(vectors - vectors.mean(axis=(0, 1, 2)), axis=-1).mean())


def _size_warning(u: DisplacementField) -> list[str]:
    diagonal = float(np.linalg.norm(np.array(u.grid.size) * u.grid.spacing))
    mean = np.linalg.norm(u.vectors, axis=-1).mean(dtype=float)
    if mean > diagonal:
        return [
            f"points move by {mean:.0f} mm on average, more than the fixed image is large ({diagonal:.0f} mm): it "
            "belongs to another image, or is not in mm, LPS"
        ]
    return []


# Transforms


def _itk_transform(path: Path, like: Grid | None) -> Inspection:
    chain = read_chain(path)
    parts = tuple(_part(link, {}) for link in chain.links)
    return _with_chain(Inspection(str(path), "ITK transform", _transform_facts(len(parts)), parts), chain, like)


def _transform_facts(count: int) -> dict[str, Any]:
    return {"maps": DIRECTION, "frame": FRAME, "parts": count}


def _part(link: Link, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one part of a chain is; `about` says what its file told."""
    return {**about, "combine": link.combine, "is": link.transform.describe(), **link.transform.facts()}


def _with_chain(found: Inspection, chain: TransformChain, like: Grid | None) -> Inspection:
    """Add what the whole chain does."""
    warnings = [*found.warnings, *(w for link in chain.links for w in _matrix_warnings(link))]
    grid = like or transform_grid(chain)
    facts = dict(found.facts)
    if grid is None:
        facts["grid"] = "not named; give the fixed image with `like` to see how far points move"
    else:
        facts |= grid.to_dict()
        u = chain.displacement_on(grid.with_spacing([max(OVERVIEW_SPACING, s) for s in grid.spacing]))
        facts |= _magnitudes(u)
        warnings += _size_warning(u)
    return dataclasses.replace(found, facts=facts, warnings=tuple(warnings))


def _matrix_warnings(link: Link) -> Iterator[str]:
    if not isinstance(link.transform, MatrixTransform):
        return
    matrix = link.transform.matrix
    if np.linalg.det(matrix) <= 0:
        yield f"the {link.transform.name} mirrors (determinant {np.linalg.det(matrix):.3g}): frames were mixed up"
    elif np.abs(matrix - np.diag([-1.0, -1.0, 1.0])).max() < 0.35:
        yield f"the {link.transform.name} turns by 180 degrees about z, as when RAS and LPS were mixed up"


@dataclass
class _Walk:
    """Follows an elastix transform file to those that it starts from."""

    files: list[tuple[Path, ParameterMap | None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def follow(self, path: Path) -> None:
        if path.resolve() in (file.resolve() for file, _ in self.files):
            raise TransformError(f"transform file '{path}' has itself as initial transform; correct {INITIAL_KEYS[0]}")
        if len(self.files) >= MOST_LINKS:
            raise TransformError(f"transform file '{self.files[0][0]}' begins with more than {MOST_LINKS} others")
        if path.suffix.lower() in _TRANSFORM_SUFFIXES:
            self.files.append((path, None))
            return
        values = read_transform_map(path)
        check_start_is_told(values)
        self.files.append((path, values))
        if INITIAL_KEYS[0] in values and INITIAL_KEYS[1] not in values and initial_file(values):
            self.warnings.append(
                f"{path}: elastix up to 5.1 does not know {INITIAL_KEYS[0]} and would leave its initial transform out; "
                f"say it as {INITIAL_KEYS[1]} too"
            )
        for key in file_keys():
            if key in values:
                self._look(path, key, values.get_str(key))
        name = initial_file(values)
        start = self._look(path, "its initial transform", name) if name is not None else None
        if start is not None:
            self.follow(start)

    def _look(self, path: Path, what: str, name: str) -> Path | None:
        found = locate_file(name, path.resolve().parent)
        mend = f"try: regnet-itk repair {path.parent}"
        if found is None:
            self.missing.append(name)
            self.warnings.append(f"{path}: {what} '{name}' does not exist; {mend}")
        elif not Path(name).is_absolute():
            self.warnings.append(f"{path}: {what} '{name}' is a relative path, found only from some folders; {mend}")
        elif found != Path(name):
            self.warnings.append(f"{path}: {what} '{name}' does not exist, but lies beside it; {mend}")
        return found


def _elastix_transform(path: Path, like: Grid | None) -> Inspection:
    walk = _Walk()
    walk.follow(path)
    found = Inspection(str(path), "elastix transform", _transform_facts(len(walk.files)), warnings=tuple(walk.warnings))
    about = [_about(file, values) for file, values in reversed(walk.files)]
    if walk.missing:
        facts = {**found.facts, "missing_files": walk.missing}
        return dataclasses.replace(found, facts=facts, parts=tuple(about))
    try:
        chain = read_chain(path)
    except TransformError as error:  # of a kind that is not supported, for example
        return dataclasses.replace(found, parts=tuple(about), warnings=(*found.warnings, str(error)))
    extra = len(chain.links) - len(about)  # an initial file of ITK may hold several
    about = [about[0]] * extra + about
    parts = tuple(_part(link, known) for link, known in zip(chain.links, about, strict=True))
    facts = {**found.facts, "parts": len(parts)}
    return _with_chain(dataclasses.replace(found, facts=facts, parts=parts), chain, like)


def _about(file: Path, values: ParameterMap | None) -> dict[str, Any]:
    if values is None:
        return {"file": str(file)}
    return {
        "file": str(file),
        "type": values.get_str("Transform", "none"),
        "combine": values.get_str("HowToCombineTransforms", "Compose").lower(),
    }


# DICOM


def _dicom_facts(dataset: Any) -> dict[str, Any]:
    """Return whose object a DICOM file holds, and where it lies."""
    named = {
        "patient": dataset.get("PatientID"),
        "description": dataset.get("SeriesDescription"),
        "frame_of_reference": dataset.get("FrameOfReferenceUID"),
    }
    return {name: str(value) for name, value in named.items() if value}


def _registration(path: Path, like: Grid | None) -> Inspection:
    dataset = read_dataset(path, "registration")
    chain = read_registration(path)
    parts = tuple(_part(link, {}) for link in chain.links)
    kind = "DICOM deformable registration" if "DeformableRegistrationSequence" in dataset else "DICOM registration"
    facts = {**_transform_facts(len(parts)), **_dicom_facts(dataset), "frames_named": list_frames(dataset)}
    return _with_chain(Inspection(str(path), kind, facts, parts), chain, like)


def _dose(path: Path, like: Grid | None) -> Inspection:
    dose = read_dose(path)
    facts = {"unit": "Gy", "frame": FRAME, **_dicom_facts(dose.header), **dose.image.grid.to_dict()}
    facts |= {"highest": float(dose.image.array.max()), "sum_of": str(dose.header.get("DoseSummationType", ""))}
    return Inspection(str(path), "DICOM dose", facts)


def _structures(path: Path, like: Grid | None) -> Inspection:
    found = read_structures(path)
    facts = {**_dicom_facts(found.header), "frame_of_reference": found.frame_of_reference, "frame": FRAME}
    facts["structures"] = {}
    warnings = []
    for structure in found.structures:
        try:
            stack = stack_planes(structure, like.spacing[2] if like is not None else None)
            volume = "no volume" if stack is None else f"{stack.volume() / 1000:.2f} cm3"
        except DicomError as error:
            volume = "volume unknown"
            warnings.append(str(error).partition(";")[0])
        facts["structures"][structure.name] = f"{len(structure.contours)} contours, {volume}"
    return Inspection(str(path), "DICOM structures", facts, warnings=tuple(warnings))


_DICOM_KINDS: Mapping[str, Callable[[Path, Grid | None], Inspection]] = {
    REGISTRATION: _registration,
    DEFORMABLE: _registration,
    DOSE: _dose,
    STRUCTURES: _structures,
}


# Text: transforms, parameters, landmarks


def _text(path: Path, like: Grid | None) -> Inspection:
    try:
        start = path.read_text(encoding="utf-8-sig").lstrip()
    except UnicodeDecodeError:
        raise TransformError(f"'{path}' is not a text file, though its suffix is {path.suffix}") from None
    except OSError as error:
        raise TransformError(f"'{path}' cannot be read: {error.strerror}") from None
    if path.suffix.lower() == ".txt" and re.match(r"(point|index|\d)", start):
        return _landmarks(path, like)
    if path.suffix.lower() == ".txt" and not start.startswith(("(", "//")):
        raise TransformError(f"'{path}' is neither an elastix transform, nor a parameter file, nor a list of points")
    values = read_parameter_map(path)
    if "Transform" in values and any(
        key in values for key in ("TransformParameters", "NumberOfParameters", *file_keys())
    ):
        return _elastix_transform(path, like)
    return _parameters(path, values)


_ELASTIX_KEYS = (
    "Transform", "Metric", "Optimizer", "NumberOfResolutions", "MaximumNumberOfIterations",
    "FinalGridSpacingInPhysicalUnits", "FinalGridSpacingInVoxels",
)  # fmt: skip


def _parameters(path: Path, values: ParameterMap) -> Inspection:
    try:
        settings = find_stage(values.registration).settings_type
    except ParameterError:  # which is told among the warnings
        settings = None
    own = () if settings is None else [key.name for key in declared_keys(settings).values() if key.headline]
    elastix = "Transform" in values or not own
    kind = "elastix parameter file" if elastix else f"{values.registration.removesuffix('Registration')} parameter file"
    keys = (*_ELASTIX_KEYS, *own)
    facts = {"registration": values.registration, **{key: " ".join(values[key]) for key in keys if key in values}}
    try:
        warnings = check_parameter_map(values)
    except ParameterError as error:
        warnings = [f"it would be refused: {error}"]
    return Inspection(str(path), kind, facts, warnings=tuple(warnings))


def _landmarks(path: Path, like: Grid | None) -> Inspection:
    try:
        landmarks = read_landmarks(path, like)
    except PointsError as error:
        if like is None and "voxel indices" in str(error):
            unknown = "voxel indices; give their image with `like` to see them in mm"
            return Inspection(str(path), "landmarks", {"unit": unknown})
        raise
    points = landmarks.points
    facts: dict[str, Any] = {
        "frame": FRAME,
        "count": len(landmarks),
        "named": bool(landmarks.names),
        "lowest": points.min(axis=0).tolist(),
        "highest": points.max(axis=0).tolist(),
    }
    warnings = []
    if like is not None:
        facts["inside_image"] = int(like.contains(points).sum())
        try:
            check_inside(landmarks, like, "given")
        except PointsError as error:
            warnings.append(str(error))
    if len(landmarks) > 1 and np.array_equal(points, np.round(points)) and points.min() >= 0:
        warnings.append("all coordinates are whole numbers from 0 on: they look like voxel indices, not like mm")
    return Inspection(str(path), "landmarks", facts, warnings=tuple(warnings))


def _model(path: Path) -> Inspection:
    from regnet_itk.networks.model import load_model

    model = load_model(path)
    count = sum(math.prod(tensor.shape) for tensor in model.network.state_dict().values())
    facts = {**model.description.to_dict(), "numbers": count, "sha256": model.digest}
    return Inspection(str(path), "RegNet model", facts)


# As text


def describe_inspection(found: Inspection) -> list[str]:
    """Return an inspection as lines of text, the warnings last."""
    lines = [f"{found.path}: {found.kind}"]
    lines += _fact_lines(found.facts, "  ")
    for number, part in enumerate(found.parts):
        name = Path(part["file"]).name if "file" in part else ""
        how = _COMBINED.get(part.get("combine", ""), "") if number else ""
        text = ", ".join(word for word in (name, part.get("is") or part.get("type", ""), how) if word)
        lines.append(f"  part {number}: {text}")
    return [*lines, *(f"warning: {warning}" for warning in found.warnings)]


def _fact_lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping) and key not in _SPECIAL and any(isinstance(v, Mapping) for v in value.values()):
            yield f"{indent}{name}"
            yield from _fact_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name:{width}}  {_as_text(key, value)}"


_COMBINED = {
    "compose": "composed: applied after the parts before it",
    "add": "added to what the parts before it do",
    "innermost": "applied before the parts before it",
}
_SPECIAL: Mapping[str, Callable[[Any], str]] = {
    "displacement": lambda d: f"mean {d['mean']:.3g} mm, max {d['max']:.3g} mm",
    "det_jacobian": lambda d: (
        f"{d['min']:.3f} to {d['max']:.3f}; folds (<= 0) at {d['share_not_positive']:.3%} of the voxels "
        f"({_numbers(d['spacing'])} mm)"
    ),
    "size": lambda values: f"{_numbers(values)} voxels",
    "spacing": lambda values: f"{_numbers(values)} mm",
}


def _as_text(key: str, value: Any) -> str:
    if key in _SPECIAL:
        return _SPECIAL[key](value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_as_text('', item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list):
            return "; ".join(" ".join(_as_text("", v) for v in row) for row in value)
        return ", ".join(_as_text("", item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _numbers(values: list[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
