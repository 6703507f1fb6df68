"""Data classes from tables of plain values, as TOML and JSON hold them: every key and every type is checked."""

# By hand: msgspec takes unknown keys of a data class (a misspelt one would do nothing), and its errors name neither the
# value nor the nearest key, nor the table in which a check of our own failed.

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from regnet_itk.errors import ParameterError, did_you_mean

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return a data class from a table whose keys are the names of its fields.

    Parameters
    ----------
    cls : type
        A data class of numbers, words, tuples, and further data classes; what it has as dictionaries is taken as it is.
    values : mapping
    where : str
        Begins the messages.

    Raises
    ------
    ParameterError
        If a key is unknown, missing or of the wrong type, or the class refuses the values.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from regnet_itk.typed_tables import build
    >>> @dataclass
    ... class Window:
    ...     ends: tuple[float, float]
    >>> build(Window, {"ends": [-1000, 200]}, "window")
    Window(ends=(-1000.0, 200.0))
    """
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ParameterError(f"{where}: unknown key '{key}'{did_you_mean(key, hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ParameterError(f"{where}: key '{missing[0]}' is missing")
    arguments = {key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ParameterError as error:
        raise ParameterError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return build(hint, value, where)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            return tuple(_value(kinds[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(kinds) == len(value):
            return tuple(_value(k, v, where) for k, v in zip(kinds, value, strict=True))
    if isinstance(hint, types.UnionType):  # what may be left out
        return None if value is None else _value(get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ParameterError(f"{where} is no number that can be computed with")
        return float(value)
    if (hint in (int, str, bool) and type(value) is hint) or (get_origin(hint) is dict and isinstance(value, dict)):
        return value
    wanted = hint.__name__ if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else hint
    raise ParameterError(f"{where} = {value!r} is not of the kind {wanted}")
