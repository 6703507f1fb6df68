"""The keys that elastix knows."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path

_COMPONENT = re.compile(
    r"(Registration|FixedImagePyramid|MovingImagePyramid|ImageSampler|Interpolator|Metric|Optimizer|"
    r"ResampleInterpolator|Resampler|Transform)\d*"
)


def describe_unknown_key(key: str, source: str) -> str:
    """Return the warning for a key that elastix does not know; it names the nearest one.

    Parameters
    ----------
    key : str
    source : str
        The parameter file.
    """
    by_lower = {plain.lower(): name for plain, name in _elastix_keys().items()}
    near = difflib.get_close_matches(_plain(key).lower(), by_lower, n=1, cutoff=0.7)
    hint = f"; did you mean '{by_lower[near[0]]}'?" if near else ""
    return f"{source}: elastix does not know the key '{key}', and ignores it{hint}"


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
