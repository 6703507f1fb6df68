"""The stages that there are, by the ``(Registration "..")`` of their parameter maps.

A stage of another package is found through an entry point of the group ``regnet_itk.stages``, whose name is the
registration and whose object is the class.
"""

from __future__ import annotations

from regnet_itk.data.image_nd import DIMENSIONS
from regnet_itk.entry_points import list_entry_points, load_entry_point
from regnet_itk.errors import ParameterError, did_you_mean
from regnet_itk.parameters import ELASTIX_REGISTRATIONS, ParameterMap
from regnet_itk.stages.base import Stage
from regnet_itk.stages.elastix import DIMENSION_KEYS, ElastixStage
from regnet_itk.stages.keys import declared_keys
from regnet_itk.stages.known_elastix_keys import describe_unknown_key, is_elastix_key
from regnet_itk.stages.regnet import REGNET_REGISTRATION, RegNetStage

STAGES: dict[str, type[Stage]] = {
    **dict.fromkeys(ELASTIX_REGISTRATIONS, ElastixStage),
    REGNET_REGISTRATION: RegNetStage,
}
"""The stages of this package by their registration."""

ENTRY_POINTS = "regnet_itk.stages"
"""The group of entry points through which other packages add theirs."""


def known_registrations() -> tuple[str, ...]:
    """Return the registrations that parameter maps can ask for."""
    return tuple(dict.fromkeys((*STAGES, *list_entry_points(ENTRY_POINTS))))


def find_stage(registration: str, source: str = "<memory>") -> type[Stage]:
    """Return the class of the stage that a registration names.

    Parameters
    ----------
    registration : str
        "RegNetRegistration", "MultiResolutionRegistration" ..
    source : str
        The parameter file, for the messages.

    Raises
    ------
    ParameterError
        If there is none, or the package that has it cannot be loaded.
    """
    if registration in STAGES:
        return STAGES[registration]
    if registration not in list_entry_points(ENTRY_POINTS):
        known = known_registrations()
        near = did_you_mean(registration, known) or f"; known are {', '.join(known)}"
        raise ParameterError(f"{source}: there is no Registration '{registration}'{near}")
    point = list_entry_points(ENTRY_POINTS)[registration]
    try:
        found: type[Stage] = load_entry_point(point, "Registration", _is_stage, ParameterError)
    except ParameterError as error:
        raise ParameterError(f"{source}: {error}") from None
    return found


def _is_stage(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Stage)


def make_stage(parameters: ParameterMap) -> Stage:
    """Return the stage that a parameter map describes.

    Raises
    ------
    ParameterError
        If there is none.
    """
    return find_stage(parameters.registration, parameters.source)(parameters)


def check_parameter_map(parameters: ParameterMap) -> list[str]:
    """Refuse a map that asks for something that does not exist.

    Parameters
    ----------
    parameters : ParameterMap
        The map of a stage.

    Returns
    -------
    list of str
        Warnings: keys that nothing is known about.

    Raises
    ------
    ParameterError
        At an unknown registration, a dimension that the stage does not take, a misspelt key of a stage of this or
        another package, or a wrong value of such a key. What elastix does not know is a warning, as it ignores it.
    """
    stage = find_stage(parameters.registration, parameters.source)
    own = {} if stage.settings_type is None else declared_keys(stage.settings_type)
    possible = DIMENSIONS if issubclass(stage, ElastixStage) else (3,)
    for key in DIMENSION_KEYS:
        if parameters.get_int(key, 3) not in possible:
            what = "elastix registers images of 2, 3 or 4" if len(possible) > 1 else "this stage needs 3D images"
            raise ParameterError(f"{parameters.source}: '{key}' is {parameters.get_str(key)}; {what}")
    warnings = []
    for key in parameters:
        if key in own:
            own[key].read(parameters)
        elif warning := _check_other_key(parameters, key):
            warnings.append(warning)
    return warnings


def _check_other_key(parameters: ParameterMap, key: str) -> str | None:
    """Refuse a key of another stage, and a misspelt one; return a warning if nothing is known about it."""
    if is_elastix_key(key):
        return None
    known: list[str] = []
    for registration in known_registrations():
        begins = "regnet" if registration in ELASTIX_REGISTRATIONS else registration.removesuffix("Registration")
        if not begins or not key.lower().startswith(begins.lower()):
            continue
        settings = find_stage(registration, parameters.source).settings_type
        own = {} if settings is None else declared_keys(settings)
        if key in own:
            raise ParameterError(
                f"{parameters.source}: the key '{key}' needs (Registration \"{registration}\"), "
                f"but the Registration is '{parameters.registration}'"
            )
        known += own
    if known:
        near = did_you_mean(key, known) or f"; known are {', '.join(dict.fromkeys(known))}"
        raise ParameterError(f"{parameters.source}: there is no key '{key}'{near}")
    return describe_unknown_key(key, parameters.source)
