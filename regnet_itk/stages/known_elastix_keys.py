"""The keys that elastix knows."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path

from regnet_itk.errors import ParameterError

_COMPONENT = re.compile(
    r"(Registration|FixedImagePyramid|MovingImagePyramid|ImageSampler|Interpolator|Metric|Optimizer|"
    r"ResampleInterpolator|Resampler|Transform)\d*"
)


def check_elastix_key(key: str, source: str) -> str | None:
    """Return a warning if nothing is known about a key of an elastix map, or None.

    Parameters
    ----------
    key : str
    source : str
        The parameter file, for the messages.

    Raises
    ------
    ParameterError
        If it is a misspelt one.
    """
    if is_elastix_key(key):
        return None
    by_lower = {plain.lower(): name for plain, name in _elastix_keys().items()}
    near = difflib.get_close_matches(_plain(key).lower(), by_lower, n=1, cutoff=0.85)
    if near:
        raise ParameterError(f"{source}: elastix has no key '{key}'; did you mean '{by_lower[near[0]]}'?")
    return f"{source}: elastix does not know the key '{key}', and ignores it"


@lru_cache(maxsize=1)
def _elastix_keys() -> dict[str, str]:
    lines = (Path(__file__).parent / "known_elastix_keys.txt").read_text(encoding="utf-8").split()
    return {_plain(key): key for key in lines}


def _plain(key: str) -> str:
    return re.sub(r"\d+", "0", key)


def is_elastix_key(key: str) -> bool:
    """Say whether elastix knows the key, by itself or after a component's label (``Metric0Weight``)."""
    known = _elastix_keys()
    label = _COMPONENT.match(key)
    return _plain(key) in known or (label is not None and _plain(key[label.end() :]) in known)
