"""From what a user gives to the stages that run: read them, and find what would fail before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import INTERPOLATION_ORDERS
from regnet_itk.data.pixel_types import check_default
from regnet_itk.data.suffixes import RESULT_FORMATS
from regnet_itk.errors import ParameterError, did_you_mean
from regnet_itk.events import Log
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.stages.base import ImagePair, RunOptions, Stage
from regnet_itk.stages.guides import GUIDES
from regnet_itk.stages.registry import check_parameter_map, make_stage
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.resampling_keys import result_pixel_type

StageLike = Stage | ParameterMap | str | Path
"""A stage, its parameter map, the path of its parameter file, or the name of a file that ships."""


def read_stages(given: StageLike | Sequence[StageLike], log: Log | None = None) -> list[Stage]:
    """Return the stages that are meant, each checked for what it asks for.

    Parameters
    ----------
    given : StageLike or sequence of StageLike
        In the order in which they run. The keys of a Stage are its own matter: they are not checked.
    log : Logger, optional
        Is warned of each key that nothing is known about.

    Raises
    ------
    ParameterError
        If there is none, or one is missing, malformed or asks for something that does not exist.
    """
    several = [given] if isinstance(given, Stage | ParameterMap | str | Path) else list(given)
    if not several:
        raise ParameterError("no stage was given; name at least one parameter file, such as 'affine'")
    return [one if isinstance(one, Stage) else _read_stage(one, log) for one in several]


def _read_stage(given: ParameterMap | str | Path, log: Log | None) -> Stage:
    parameters = given if isinstance(given, ParameterMap) else read_parameter_map(given)
    for warning in check_parameter_map(parameters):
        if log is not None:
            log.warning("%s", warning)
    return make_stage(parameters)


def check_stages(
    stages: Sequence[Stage],
    initial: TransformChain,
    pair: ImagePair | None = None,
    options: RunOptions | None = None,
    *,
    load: bool = True,
) -> None:
    """Find what would fail later, before anything runs.

    Parameters
    ----------
    stages : sequence of Stage
    initial : TransformChain
        Where the first one starts.
    pair : ImagePair, optional
        What is registered, if that is known.
    options : RunOptions, optional
        How they are to run.
    load : bool
        Load what they need as well; else this is left to :func:`load_stages`.

    Raises
    ------
    RegNetItkError
        As :meth:`Stage.check`.
    """
    expected, options = initial, options or RunOptions()
    for stage in stages:
        check_output_keys(stage.parameters)
        stage.check(expected, pair, options)
        if stage.adds_field:
            expected = expected.then(link_field(DisplacementField(np.zeros((1, 1, 1, 3)), Grid((1, 1, 1)))))
    if load:
        load_stages(stages, pair, options)


def check_guides_followed(stages: Sequence[Stage], pair: ImagePair, *, both_ways: bool) -> Iterator[str]:
    """Refuse guides that nothing would follow; yield warnings of stages that undo what an earlier one made of them.

    Parameters
    ----------
    stages : sequence of Stage
    pair : ImagePair
    both_ways : bool
        Whether the moving image is to be a fixed one as well.

    Raises
    ------
    ParameterError
        If a guide is given of which no stage knows, or for one image where two are needed.
    """
    given: dict[str, set[str]] = {name: set() for name in GUIDES}
    for role, guides in (("fixed", pair.fixed_guides), ("moving", pair.moving_guides)):
        for name, _ in guides.given():
            given[name].add(role)
    for name, roles in given.items():
        if not roles:
            continue
        _check_roles(name, roles, both_ways=both_ways)
        following = [name in stage.follows for stage in stages]
        argument = f"`{sorted(roles)[0]}_{name}`"
        if not any(following):
            raise ParameterError(
                f"{argument} is given, and no stage of this chain follows it; add one of RegNet, such as "
                "'regnet_multistage'"
            )
        if not following[-1]:
            yield f"stage {len(stages) - 1} ({stages[-1].name}) does not follow {argument}, and may undo it"


def _check_roles(name: str, roles: set[str], *, both_ways: bool) -> None:
    """Refuse guides of one image where those of both are needed, and of the moving one where the fixed one's count."""
    if name == "ignore":
        return
    if name == "label" and len(roles) < 2:
        raise ParameterError("labels are needed for both images (`fixed_label` and `moving_label`), or for none")
    if "fixed" not in roles:
        raise ParameterError(f"`moving_{name}` is for the way back; give `fixed_{name}`, on the fixed image")
    if both_ways and "moving" not in roles:
        raise ParameterError(f"the way back needs `moving_{name}` beside `fixed_{name}`, on the moving image")


def load_stages(stages: Sequence[Stage], pair: ImagePair | None, options: RunOptions) -> None:
    """Load what stages need, and find what only that shows; see :meth:`Stage.load`."""
    for stage in stages:
        stage.load(pair, options)


def check_output_keys(parameters: ParameterMap) -> None:
    """Refuse what would fail when a stage has run and its result is made or written.

    Raises
    ------
    ParameterError
    """
    suffix = parameters.get_str("ResultImageFormat", "mha")
    if suffix not in RESULT_FORMATS:
        near = did_you_mean(suffix, RESULT_FORMATS) or f"; known are {', '.join(RESULT_FORMATS)}"
        raise ParameterError(f"{parameters.source}: there is no ResultImageFormat '{suffix}'{near}")
    parameters.get_bool("WriteResultImage", True)
    check_default(parameters.get_float("DefaultPixelValue", 0.0), result_pixel_type(parameters), parameters.source)
    order = parameters.get_int("FinalBSplineInterpolationOrder", 3)
    if order not in INTERPOLATION_ORDERS:
        raise ParameterError(
            f"{parameters.source}: 'FinalBSplineInterpolationOrder' must be between 0 and "
            f"{max(INTERPOLATION_ORDERS)}, not {order}"
        )
