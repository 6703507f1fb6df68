"""What other packages add to this one: stages, networks, regions, metrics, types of transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from regnet_itk.errors import RegNetItkError


@lru_cache
def list_entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group, by their names, without loading them."""
    return {point.name: point for point in entry_points(group=group)}


def load_entry_point(
    point: EntryPoint, what: str, is_one: Callable[[Any], bool], error_type: type[RegNetItkError]
) -> Any:
    """Load what an entry point names.

    Parameters
    ----------
    point : EntryPoint
    what : str
        What it is to be, for the messages: "metric" ..
    is_one : callable
        Says whether an object is one.
    error_type : type
        Of the exception.

    Raises
    ------
    RegNetItkError
        If the other package cannot be loaded, or names something else.
    """
    try:
        found = point.load()
    except Exception as error:  # whatever the other package does wrong
        raise error_type(
            f"the {what} '{point.name}' of '{point.value}' cannot be loaded: {type(error).__name__}: {error}; mend or "
            "uninstall that package"
        ) from None
    if not is_one(found):
        raise error_type(
            f"'{point.value}' is to be the {what} '{point.name}', and is none; mend or uninstall that package"
        )
    return found
