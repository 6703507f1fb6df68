"""The keys that a stage has of its own in a parameter file, each declared once: as a field of the stage's settings.

Reading, checking, messages and the table in the documentation all follow from the declaration::

    @dataclass(frozen=True)
    class DemonsSettings:
        iterations: int = key("DemonsIterations", 50, whole_number("a whole number, at least 1", 1), "how many steps")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from regnet_itk.errors import ParameterError
from regnet_itk.parameters import to_whole

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

Settings = TypeVar("Settings")
_KEY = "key"


@dataclass(frozen=True)
class Kind:
    """What one value of a key must be.

    Parameters
    ----------
    words : str
        What follows "must be" in messages.
    convert : callable
        Turns the text of the file into the value; raises ValueError where it is not of this kind.
    """

    words: str
    convert: Callable[[str], Any]


def text(words: str) -> Kind:
    """Return the kind of a text that is not blank."""
    return Kind(words, lambda given: given if given.strip() else _refuse(given))


def choice(*known: str) -> Kind:
    """Return the kind of a word out of several."""
    return Kind(f"{', '.join(known[:-1])} or {known[-1]}", lambda given: given if given in known else _refuse(given))


def truth() -> Kind:
    """Return the kind of elastix's truth values."""
    return Kind("true or false", lambda given: given == "true" if given in ("true", "false") else _refuse(given))


def whole_number(words: str, least: int = 0, most: float = math.inf) -> Kind:
    """Return the kind of a whole number from `least` to `most`."""

    def convert(given: str) -> int:
        value = to_whole(given)
        return value if least <= value <= most else _refuse(given)

    return Kind(words, convert)


def number(words: str, least: float = 0.0, *, above: float = -math.inf) -> Kind:
    """Return the kind of a finite number that is `least` or more, and more than `above`."""

    def convert(given: str) -> float:
        value = float(given)
        return value if least <= value < math.inf and value > above else _refuse(given)

    return Kind(words, convert)


def _refuse(given: str) -> Any:
    raise ValueError(given)


@dataclass(frozen=True)
class Key:
    """The declaration of a key.

    Parameters
    ----------
    name : str
        As it stands in a parameter file. The keys of a stage begin with the name of its registration: those of
        "DemonsRegistration" with "Demons".
    kind : Kind
        What a value must be.
    doc : str
        What it means, in Markdown, as in the documentation's table.
    default_words : str, optional
        How the table names the default, if not by its value.
    several : bool
        Whether it takes several values; the field is a tuple then.
    headline : bool
        Whether it is shown where a parameter file is described in a few lines.
    """

    name: str
    kind: Kind
    doc: str
    default_words: str = ""
    several: bool = False
    headline: bool = False

    def read(self, parameters: ParameterMap) -> Any:
        """Return the value that a map gives.

        Raises
        ------
        ParameterError
            If it is of another kind, or there are several for a key that takes one.
        """
        values = parameters[self.name]
        if len(values) != 1 and not self.several:
            raise ParameterError(f"{parameters.source}: '{self.name}' takes one value, not {len(values)}")
        found = tuple(self._converted(value, parameters.source) for value in values)
        return found if self.several else found[0]

    def _converted(self, value: str, source: str) -> Any:
        try:
            return self.kind.convert(value)
        except ValueError:
            raise ParameterError(f"{source}: '{self.name}' must be {self.kind.words}, not '{value}'") from None


def key(
    name: str, default: Any, kind: Kind, doc: str, *, default_words: str = "", several: bool = False,
    headline: bool = False,
) -> Any:  # fmt: skip
    """Return the field of a settings dataclass that is the key `name` in parameter files; see :class:`Key`."""
    return field(default=default, metadata={_KEY: Key(name, kind, doc, default_words, several, headline)})


def declared_keys(settings: type) -> dict[str, Key]:
    """Return the keys that a settings dataclass declares, by name, in their order."""
    found = (member.metadata[_KEY] for member in fields(settings) if _KEY in member.metadata)
    return {declared.name: declared for declared in found}


def read_settings(settings: type[Settings], parameters: ParameterMap) -> Settings:
    """Return the settings that a map gives; what it leaves out has the default.

    Raises
    ------
    ParameterError
        At a value that is not what its key takes.
    """
    declared = {member.name: member.metadata[_KEY] for member in fields(settings) if _KEY in member.metadata}  # type: ignore[arg-type]
    return settings(**{name: k.read(parameters) for name, k in declared.items() if k.name in parameters})


def key_table(settings: type) -> list[str]:
    """Return the keys as the lines of a Markdown table."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for member in fields(settings):
        if _KEY in member.metadata:
            declared: Key = member.metadata[_KEY]
            usual = declared.default_words or _in_words(member.default)
            lines.append(f"| `{declared.name}` | {usual} | {declared.doc} |")
    return lines


def _in_words(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if isinstance(default, str) else f"{default:g}"
