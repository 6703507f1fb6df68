"""The types of transforms that are known: those of this package, of other packages, and of one's own.

A package of another's makes its `TransformType` known as an entry point of the group ``regnet_itk.transforms``.
"""

from __future__ import annotations

from collections.abc import Iterator

from regnet_itk.entry_points import list_entry_points, load_entry_point
from regnet_itk.errors import TransformError
from regnet_itk.transforms.base import Transform, TransformType
from regnet_itk.transforms.bspline import BSPLINE
from regnet_itk.transforms.field import FIELD
from regnet_itk.transforms.matrix import MATRIX

GROUP = "regnet_itk.transforms"

_registered = [MATRIX, BSPLINE, FIELD]


def register_transform(kind: TransformType) -> None:
    """Make a type of transform known; it is then read, written, sampled and described as those of this package.

    Parameters
    ----------
    kind : TransformType

    Raises
    ------
    TransformError
        If another type has its class or one of its names.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import TransformType, register_transform
    >>> from regnet_itk.transforms.matrix import MatrixTransform
    >>> from regnet_itk.transforms.registry import known_names, unregister_transform
    >>> class Mirror(MatrixTransform):
    ...     pass
    >>> def read_mirror(values, folder):
    ...     return Mirror(np.diag([-1.0, 1.0, 1.0]))
    >>> mirror = TransformType(Mirror, ("MirrorTransform",), read_mirror)
    >>> register_transform(mirror)
    >>> known_names()[-1]
    'MirrorTransform'
    >>> unregister_transform(mirror)
    """
    _check(kind, known_types())
    _registered.append(kind)


def unregister_transform(kind: TransformType) -> None:
    """Forget a type of transform that `register_transform` made known."""
    _registered.remove(kind)


def known_types() -> tuple[TransformType, ...]:
    """Return all types of transforms that are known.

    Raises
    ------
    TransformError
        If an entry point cannot be loaded, or takes a name that another type has.
    """
    return tuple(_all_types())


def known_names() -> tuple[str, ...]:
    """Return the values of elastix's ``(Transform "..")`` that can be read."""
    return tuple(name for kind in _all_types() for name in kind.elastix_names)


def stage_names() -> tuple[str, ...]:
    """Return those of them that an elastix stage can find."""
    return tuple(name for kind in _all_types() if kind.in_stages for name in kind.elastix_names)


def find_elastix_type(name: str) -> TransformType | None:
    """Return the type that elastix calls by a name."""
    return next((kind for kind in _all_types() if name in kind.elastix_names), None)


def find_itk_type(name: str) -> TransformType | None:
    """Return the type of a class of SimpleITK's transforms."""
    return next((kind for kind in _all_types() if name in kind.itk_names), None)


def find_type(transform: Transform) -> TransformType | None:
    """Return the type of a transform; None if its class is not known, which only its sampling asks for."""
    return next((kind for kind in _all_types() if isinstance(transform, kind.of)), None)


def _all_types() -> Iterator[TransformType]:
    yield from _registered
    yield from _from_entry_points()  # looked at last: one that is broken shall not stop what does not need it


def _from_entry_points() -> tuple[TransformType, ...]:
    found: list[TransformType] = []
    for point in list_entry_points(GROUP).values():
        kind = load_entry_point(point, "transform type", lambda t: isinstance(t, TransformType), TransformError)
        _check(kind, (*_registered, *found))
        found.append(kind)
    return tuple(found)


def _check(kind: TransformType, others: tuple[TransformType, ...]) -> None:
    for other in others:
        taken = {*other.elastix_names, *other.itk_names} & {*kind.elastix_names, *kind.itk_names}
        if kind.of is other.of or taken:
            name = ", ".join(sorted(taken)) or kind.of.__name__
            raise TransformError(f"there is a transform type for {name} already; give yours another name")
