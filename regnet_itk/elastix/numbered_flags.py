"""elastix's flags of several images: ``-f0 -f1 -m0 -m1 -fMask0 ..``; without a number they mean the first."""

from __future__ import annotations

import re
from collections.abc import Iterable

IMAGE_FLAGS = ("-f", "-m", "-fMask", "-mMask")


def split_number(flag: str) -> tuple[str, int]:
    """Return a flag without the number of its image, and that number: "-f1" is "-f" and 1, as "-f" is "-f" and 0."""
    match = re.fullmatch(r"(-f|-m|-fMask|-mMask)(\d{1,3})|(-fp|-mp)0", flag, re.ASCII)
    if match is None:
        return flag, 0
    return match[1] or match[3], int(match[2] or 0)


def in_order(flag: str, given: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Return the values of a flag in the order of their numbers.

    Parameters
    ----------
    flag : str
        Without number.
    given : iterable of (int, str)
        Numbers and values.

    Raises
    ------
    ValueError
        If a number is given twice, or one before it is missing.
    """
    found: dict[int, str] = {}
    for number, value in given:
        if number in found:
            raise ValueError(f'the option "{flag}{number or ""}" is given twice')
        found[number] = value
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise ValueError(f'the option "{flag}{max(found)}" is given, and "{flag}{missing}" is missing')
    return tuple(found[number] for number in range(len(found)))
