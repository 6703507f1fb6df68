"""What is compared: methods, each a named chain of stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regnet_itk.errors import ParameterError, did_you_mean
from regnet_itk.parameters import ParameterMap, shipped_parameter_files
from regnet_itk.stages.base import Stage
from regnet_itk.stages.planning import StageLike, check_stages, read_stages
from regnet_itk.transforms.chain import TransformChain

DEFAULT_METHODS = ("affine", "bspline_1r", "bspline_3r", "regnet", "regnet_multistage_oneshot", "regnet_multistage")
BEFORE = "before"
"""The method that does nothing."""

_COMMON = "affine"


@dataclass(frozen=True)
class Method:
    """A named chain of stages.

    Parameters
    ----------
    name : str
        As it is shown.
    stages : tuple of Stage
        In the order in which they run; none at all for "before".
    labels : tuple of str
        A name of each stage: of its parameter file.
    """

    name: str
    stages: tuple[Stage, ...]
    labels: tuple[str, ...]


def read_methods(names: Sequence[str], chains: Sequence[str] = ()) -> list[Method]:
    """Read methods.

    Parameters
    ----------
    names : sequence of str
        Names of shipped parameter files, joined by "+" for chains: "regnet_multistage+bspline_refine". The affine
        stage is put before each.
    chains : sequence of str
        Chains under names of their own: "mine=affine,./my.txt,bspline_refine", taken as they are.

    Raises
    ------
    ParameterError, ModelError
        If one is unknown (with the nearest known one), malformed, or named twice.

    Examples
    --------
    >>> from regnet_itk import read_methods
    >>> [method.name for method in read_methods(["affine", "bspline_3r"], ["mine=affine,regnet"])]
    ['affine', 'bspline_3r', 'mine']
    """
    own = dict(_split(chain) for chain in chains)
    shipped = shipped_parameter_files()
    methods = []
    for name in names:
        parts = name.split("+")
        unknown = next((part for part in parts if part not in shipped), None)
        if unknown is not None and name not in own:
            known = [*shipped, *own]
            raise ParameterError(
                f"there is no method '{unknown}'"
                + (did_you_mean(unknown, known) or f"; known are {', '.join(known)}")
                + "; chains of your own files are given as `chains` NAME=affine,FILE"
            )
        if name not in own:
            methods.append(plan_method(name, parts if parts[0] == _COMMON else [_COMMON, *parts]))
    methods += [plan_method(name, files) for name, files in own.items()]
    if not methods:
        raise ParameterError("no method was given; name at least one, such as `names` affine,regnet_multistage")
    taken = [method.name for method in methods]
    twice = next((name for name in taken if taken.count(name) > 1 or name == BEFORE), None)
    if twice is not None:
        raise ParameterError(f"the method name '{twice}' is taken; give each method a name of its own")
    return methods


def _split(chain: str) -> tuple[str, list[str]]:
    name, equals, files = chain.partition("=")
    parts = [part.strip() for part in files.split(",") if part.strip()]
    if not (name.strip() and equals and parts):
        raise ParameterError(f"the method '{chain}' is not of the form NAME=FILE,FILE,.. such as mine=affine,./my.txt")
    return name.strip(), parts


def plan_method(name: str, stages: StageLike | Sequence[StageLike]) -> Method:
    """Return a method of stages that are given in any way that :func:`regnet_itk.register` takes.

    Parameters
    ----------
    name : str
        As it is shown.
    stages : StageLike or sequence of StageLike
        Stages, parameter maps, paths, or names of shipped parameter files, in the order in which they run.

    Raises
    ------
    ParameterError, ModelError
        If one is unknown or malformed.
    """
    given = [stages] if isinstance(stages, Stage | ParameterMap | str | Path) else list(stages)
    read = read_stages(given)
    check_stages(read, TransformChain())
    return Method(name, tuple(read), tuple(_label(one, stage) for one, stage in zip(given, read, strict=True)))


def _label(given: StageLike, stage: Stage) -> str:
    """Return a stage's name as part of a folder's: that of its parameter file, or its own."""
    if isinstance(given, str | Path):
        return Path(given).stem.replace("+", "_")
    return re.sub(r"[^\w.-]+", "_", stage.name)
