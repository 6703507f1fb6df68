"""Chains as DICOM objects: Spatial Registration for matrices, Deformable Spatial Registration for any other.

The sentences of the standard (PS3.3) that decide the directions, which differ between the two objects:

- Both (C.20.2, C.20.3): the object's own Frame of Reference UID names the *registered* frame of reference, which the
  others are registered to; the items of its sequence name the *source* ones. The warped image lies in the frame of the
  fixed image, so this is the registered one, and the moving image's is the source.
- Spatial Registration (Matrix Sequence): it "registers the Source RCS/images to the Registered RCS"; a matrix A_M_B
  "describes how to transform a point with respect to RCS B into A" (C.20.2.1.1). That is moving to fixed, and M is the
  inverse of T. Of several matrices "the Item order is significant and corresponds to matrix multiplication order",
  which the equation C.20.2-2 says more exactly. We could not see that equation: the first is applied first here, and
  where the order matters a warning says so.
- Deformable Spatial Registration (C.20.3.1.1): "The registrations are applied to the Registered RCS coordinates": first
  the matrix M_pre, "next apply the deformation offsets to the resulting coordinates", finally M_post; "the resulting
  coordinate addresses the sample point within the Source RCS". The grid's "start coordinate" is "in the Registered
  RCS", so that X_source = M_post (M_pre X_registered + D(X_registered)). That is fixed to moving, T itself: the grid
  holds D = M_post^-1 (T(x)) - M_pre x, in mm along the axes of the patient (LPS), not along those of the grid.

T(x) = A(x + u(x)), as RegNet after an affine stage, is M_pre = I, D = u, M_post = A: exact, and the matrix holds
outside of the grid as well. The standard does not say what D is there, and leaves it to programs what it is between the
grid's points (C.20.3.1.2); here it is 0, and linear.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import LARGEST_LENGTH, FloatArray, Grid
from regnet_itk.dicom.files import DEFORMABLE, REGISTRATION, load_pydicom, read_dataset
from regnet_itk.dicom.new_objects import code, decimals, make_object, refer_to_instances, refer_to_series, save
from regnet_itk.dicom.series import Series
from regnet_itk.errors import DicomError, RegNetItkError, TransformError
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

if TYPE_CHECKING:
    from pydicom import Dataset

_log = logging.getLogger(__name__)
_IDENTITY = np.eye(4)
_IDENTITY.setflags(write=False)
_CLOSE = 1e-6
_PERPENDICULAR = 1e-4
"""Cosines in the headers of scanners are rounded; what that costs is measured in what was written."""
_MOST_BYTES = 2**32 - 2
"""Of one element."""
_BY_CONTENT = ("125024", "Image Content-based Alignment")


def write_registration(
    chain: TransformChain,
    path: Path,
    fixed: Series,
    moving: Series,
    *,
    grid: Grid | None = None,
    resample: bool = False,
) -> bool:
    """Write a chain as a DICOM registration object: of matrices alone a spatial one, else a deformable one.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    path : Path
    fixed, moving : Series
        What it refers to; the object is of the fixed one's study.
    grid : Grid, optional
        The voxels of the deformation, where it has to be sampled.
    resample : bool
        Sample it in any case; otherwise a field that the chain begins with is taken as it is.

    Returns
    -------
    bool
        Whether the object is the same transform, rather than one that was sampled.

    Raises
    ------
    TransformError
        If a grid is needed and missing, or is one that the object cannot hold.
    """
    matrix = chain.as_matrix()
    if matrix is not None:
        dataset, exact = _spatial(matrix, fixed, moving), True
    else:
        field, last, exact = _split(chain, grid, resample)
        dataset = _deformable(field, last, fixed, moving)
    refer_to_series(dataset, fixed, moving)
    save(dataset, path)
    return exact


def _base(kind: str, fixed: Series, what: str) -> Dataset:
    dataset = make_object(kind, "REG", fixed, what)
    dataset.ContentLabel = "REGISTRATION"
    dataset.ContentDescription = what
    dataset.ContentCreatorName = None
    return dataset


def _spatial(matrix: MatrixTransform, fixed: Series, moving: Series) -> Dataset:
    from regnet_itk.transforms.inverse import invert_matrix  # torch is slow to start

    dataset = _base(REGISTRATION, fixed, "Moving to fixed image, matrix")
    back = invert_matrix(matrix)
    items = []
    for series, to_registered in ((fixed, MatrixTransform(np.eye(3))), (moving, back)):
        item = load_pydicom().Dataset()
        item.FrameOfReferenceUID = series.frame_of_reference
        item.ReferencedImageSequence = refer_to_instances(series.headers)
        item.MatrixRegistrationSequence = [_matrix_registration(to_registered)]
        items.append(item)
    dataset.RegistrationSequence = items
    return dataset


def _matrix_registration(matrix: MatrixTransform) -> Dataset:
    item = load_pydicom().Dataset()
    item.RegistrationTypeCodeSequence = [code(*_BY_CONTENT)]
    item.MatrixSequence = [_matrix_item(matrix)]
    return item


def _matrix_item(matrix: MatrixTransform) -> Dataset:
    item = load_pydicom().Dataset()
    homogeneous = np.eye(4)
    homogeneous[:3, :3], homogeneous[:3, 3] = matrix.matrix, matrix.offset
    item.FrameOfReferenceTransformationMatrixType = "RIGID" if matrix.is_rigid else "AFFINE"
    item.FrameOfReferenceTransformationMatrix = decimals(homogeneous)
    return item


def _deformable(field: DisplacementField, last: MatrixTransform, fixed: Series, moving: Series) -> Dataset:
    if field.vectors.size * 4 > _MOST_BYTES:
        raise TransformError(
            f"a deformation of {field.grid.describe()} is larger than a DICOM element can be; give larger voxels with "
            "`spacing`"
        )
    new = load_pydicom().Dataset
    dataset = _base(DEFORMABLE, fixed, "Fixed to moving image, deformation")
    item = new()
    item.SourceFrameOfReferenceUID = moving.frame_of_reference
    item.ReferencedImageSequence = refer_to_instances(moving.headers)
    item.RegistrationTypeCodeSequence = [code(*_BY_CONTENT)]
    for keyword, matrix in (
        ("PreDeformationMatrixRegistrationSequence", MatrixTransform(np.eye(3))),
        ("PostDeformationMatrixRegistrationSequence", last),
    ):
        setattr(item, keyword, [_matrix_item(matrix)])
    lattice = new()
    lattice.ImagePositionPatient = decimals(field.grid.origin)
    lattice.ImageOrientationPatient = decimals(field.grid.direction_matrix[:, :2].T)
    lattice.GridDimensions = list(field.grid.size)
    lattice.GridResolution = list(field.grid.spacing)
    lattice.VectorGridData = np.ascontiguousarray(field.vectors, dtype="<f4").tobytes()
    item.DeformableRegistrationGridSequence = [lattice]
    dataset.DeformableRegistrationSequence = [item]
    return dataset


def _split(chain: TransformChain, grid: Grid | None, resample: bool) -> tuple[DisplacementField, MatrixTransform, bool]:
    """Return u and A with T(x) = A(x + u(x)), and whether that is exact."""
    from regnet_itk.transforms.inverse import invert_matrix  # torch is slow to start

    try:
        first, *others = chain.applied()
    except TransformError:
        first, others = None, []
    matrices = [other for other in others if isinstance(other, MatrixTransform)]
    if isinstance(first, DisplacementField) and len(matrices) == len(others) and not resample:
        last = TransformChain(tuple(Link(matrix) for matrix in matrices)).as_matrix()
        straight = _right_handed(first)
        if last is not None and straight is not None:
            return straight, last, True
    if grid is None:
        raise TransformError(
            "this chain has to be sampled for DICOM, and does not name the fixed image's grid; give it with `like`"
        )
    only = TransformChain(tuple(link for link in chain.links if isinstance(link.transform, MatrixTransform)))
    last = only.as_matrix()
    assert last is not None
    whole = chain.then(Link(invert_matrix(last)))
    sampled = _right_handed(whole.displacement_on(grid))
    if sampled is None:
        raise TransformError("DICOM cannot hold the grid of the fixed image, whose axes are not perpendicular; give "
                             "another one with `like`")  # fmt: skip
    return sampled, last, False


def _right_handed(field: DisplacementField) -> DisplacementField | None:
    """Return the field on right-handed axes, as DICOM has no others; None if they are not perpendicular."""
    direction = field.grid.direction_matrix
    if not np.allclose(direction.T @ direction, np.eye(3), atol=_PERPENDICULAR):
        return None
    if np.linalg.det(direction) > 0:
        return field
    return DisplacementField(field.vectors[::-1], field.grid.backwards())


# Reading


def read_registration(
    path: str | Path, fixed_frame: str | None = None, moving_frame: str | None = None
) -> TransformChain:
    """Read a DICOM registration object, spatial or deformable.

    Parameters
    ----------
    path : str or Path
    fixed_frame, moving_frame : str, optional
        Frame of reference UIDs, to choose and to check; by default the fixed image's is the registered one, and the
        moving image's is the only other that the object names.

    Returns
    -------
    TransformChain
        T, fixed to moving.

    Raises
    ------
    TransformError, DicomError
        If it cannot be read, is no registration, is of other frames of reference, or names several that it might be.
    """
    where = f"registration '{path}'"
    dataset = read_dataset(path, "registration")
    kind = str(dataset.get("SOPClassUID", ""))
    readers = {REGISTRATION: _read_spatial, DEFORMABLE: _read_deformable}
    if kind not in readers:
        raise TransformError(f"'{path}' is no DICOM registration, but {_kind_name(dataset)}; give such an object")
    registered = str(dataset.get("FrameOfReferenceUID", ""))
    if fixed_frame is not None and kind == DEFORMABLE and registered != fixed_frame:
        raise DicomError(
            f"{where} is registered to the frame of reference {registered}, and the fixed series lies in "
            f"{fixed_frame}; give the series that it was made for"
        )
    try:
        return readers[kind](dataset, where, fixed_frame or registered, moving_frame)
    except RegNetItkError:
        raise
    except (AttributeError, KeyError, IndexError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise TransformError(f"{where} is damaged: {error}") from None


def list_frames(dataset: Dataset) -> list[str]:
    """Return the UIDs of the frames of reference that a registration object relates to its own."""
    deformed, moved = (dataset.get(f"{kind}RegistrationSequence", ()) for kind in ("Deformable", ""))
    found = [item.get("SourceFrameOfReferenceUID", "") for item in deformed]
    found += [item.get("FrameOfReferenceUID", "") for item in moved]
    return list(dict.fromkeys(map(str, found)))


def _kind_name(dataset: Dataset) -> str:
    load_pydicom()
    from pydicom.uid import UID

    kind = UID(str(dataset.get("SOPClassUID", "")))
    return f"of the kind '{kind.name or 'unknown'}'"


def _read_spatial(dataset: Dataset, where: str, fixed: str, moving: str | None) -> TransformChain:
    """Return (M_moving)^-1 M_fixed: from the fixed frame to the registered one, and on to the moving one."""
    items = list(dataset.RegistrationSequence)
    frames = [str(item.get("FrameOfReferenceUID", "")) for item in items]
    matrices = [_registration_matrix(item.MatrixRegistrationSequence, where) for item in items]
    to_registered: FloatArray = _IDENTITY
    if fixed in frames:
        still = [i for i, frame in enumerate(frames) if frame == fixed]
        own = min(still, key=lambda i: float(np.abs(matrices[i] - _IDENTITY).max()))  # both scans may share a frame
        to_registered = matrices.pop(own)
        frames.pop(own)
    elif fixed != str(dataset.FrameOfReferenceUID):
        raise DicomError(
            f"{where} does not name the frame of reference {fixed} of the fixed series; give its own series"
        )
    chosen = _choose(frames, moving, where)
    whole = np.linalg.inv(matrices[chosen]) @ to_registered
    return TransformChain((_matrix_link(whole),))


def _choose(frames: Sequence[str], moving: str | None, where: str) -> int:
    """Return the number of the item of the moving image."""
    fitting = [i for i, frame in enumerate(frames) if moving in (None, frame)]
    if len(fitting) == 1:
        return fitting[0]
    named = ", ".join(frames) or "none"
    if not fitting:
        raise DicomError(
            f"{where} has no item for the moving image; the frames of reference that it names are: {named}"
        )
    raise DicomError(
        f"{where} names several frames of reference ({named}); say with `moving_series` which one is the moving image's"
    )


def _registration_matrix(sequence: Any, where: str) -> FloatArray:
    matrices = [_matrix_of(item, where) for registration in sequence for item in registration.MatrixSequence]
    whole, reverse = _IDENTITY, _IDENTITY
    for matrix in matrices:
        whole, reverse = matrix @ whole, reverse @ matrix
    if not np.allclose(whole, reverse, atol=_CLOSE):
        _log.warning(
            "%s has %d matrices one after the other; the first is applied first, and the other order would be another "
            "transform: check a landmark", where, len(matrices),
        )  # fmt: skip
    return whole


def _matrix_of(item: Dataset, where: str) -> FloatArray:
    numbers = np.array([float(value) for value in item.FrameOfReferenceTransformationMatrix])
    if numbers.shape != (16,) or not (np.abs(numbers) <= LARGEST_LENGTH).all():
        raise TransformError(f"{where} is damaged: a matrix of it is not made of 16 finite numbers")
    matrix = numbers.reshape(4, 4)
    if not np.allclose(matrix[3], (0, 0, 0, 1), atol=_CLOSE):
        raise TransformError(f"{where} is damaged: the last row of a matrix is {matrix[3].tolist()}, not 0 0 0 1")
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise TransformError(f"{where} holds a matrix that cannot be inverted")
    return matrix


def _read_deformable(dataset: Dataset, where: str, fixed: str, moving: str | None) -> TransformChain:
    """Return M_post (M_pre x + D(x)): the matrix M_pre, D added to it, and M_post after both."""
    items = list(dataset.DeformableRegistrationSequence)
    moved = [item for item in items if item.get("DeformableRegistrationGridSequence")]
    items = moved or items  # some programs list the registered image as well, without a grid
    item = items[_choose([str(item.SourceFrameOfReferenceUID) for item in items], moving, where)]
    before, after = (
        _sequence_matrix(item.get(f"{when}DeformationMatrixRegistrationSequence"), where) for when in ("Pre", "Post")
    )
    links = []
    if not np.array_equal(before, _IDENTITY):
        links.append(_matrix_link(before))
        if moved:
            _log.warning(
                "%s has a matrix before its deformation; it is read as the standard says, with the vectors at points "
                "of the registered frame. Programs differ in that: check a landmark", where
            )  # fmt: skip
    if moved:
        lattice = item.DeformableRegistrationGridSequence[0]
        links.append(Link(_field(lattice, where), "add" if links else "compose"))
    if not np.array_equal(after, _IDENTITY) or not links:
        links.append(_matrix_link(after))
    return TransformChain(tuple(links))


def _sequence_matrix(sequence: Any, where: str) -> FloatArray:
    whole: FloatArray = _IDENTITY
    for item in sequence or ():
        whole = _matrix_of(item, where) @ whole
    return whole


def _matrix_link(homogeneous: FloatArray) -> Link:
    return Link(MatrixTransform(homogeneous[:3, :3], translation=homogeneous[:3, 3]))


def _field(lattice: Dataset, where: str) -> DisplacementField:
    size = [int(n) for n in lattice.GridDimensions]
    along_x, along_y = np.array([float(v) for v in lattice.ImageOrientationPatient]).reshape(2, 3)
    direction = np.stack([along_x, along_y, np.cross(along_x, along_y)], axis=1)
    grid = Grid(
        tuple(size),  # type: ignore[arg-type]
        tuple(float(s) for s in lattice.GridResolution),  # type: ignore[arg-type]
        tuple(float(p) for p in lattice.ImagePositionPatient),  # type: ignore[arg-type]
        direction,  # type: ignore[arg-type]
    )
    found, expected = len(lattice.VectorGridData), 12 * math.prod(size)
    if found < expected or found > expected + 3:
        raise TransformError(f"{where} is damaged: its grid has {found} of {expected} bytes of vectors")
    vectors = np.frombuffer(lattice.VectorGridData, dtype="<f4", count=expected // 4).reshape(*grid.shape, 3)
    if not (np.abs(vectors) <= LARGEST_LENGTH).all():
        undefined = int((~np.isfinite(vectors)).any(axis=-1).sum())
        raise TransformError(
            f"{where} does not say where {undefined} of its {vectors[..., 0].size} grid points go (vectors that are "
            "not finite); write it with a grid that it knows as a whole"
        )
    return DisplacementField(vectors.astype(np.float32), grid)
