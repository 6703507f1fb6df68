"""Parameter maps as elastix has them: read and write ``.txt`` and ``.toml`` files.

A map names keys and gives each one or more values. A map of a RegNet stage says ``(Registration
"RegNetRegistration")``; the keys of its own begin with ``RegNet`` and all others mean what they mean in elastix.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regnet_itk.data.suffixes import PARAMETER_SUFFIXES
from regnet_itk.errors import ParameterError, did_you_mean
from regnet_itk.inputs import FOLDER, MISSING, why_no_file

ELASTIX_REGISTRATIONS = (
    "MultiResolutionRegistration",
    "MultiMetricMultiResolutionRegistration",
    "MultiResolutionRegistrationWithFeatures",
)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOML_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_LINE = re.compile(r"\((?P<body>(?:\"[^\"]*\"|[^\"()])*)\)\s*(?://.*)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_KEYS = re.compile(r"[.,:;!@#$%^&-+|<>?]")  # what elastix refuses, ranges included
_TOKEN = re.compile(r"\s*(?:\"(?P<quoted>[^\"]*)\"|(?P<bare>[^\s\"]+))(?=\s|$)", re.ASCII)


@dataclass(frozen=True)
class ParameterMap:
    """The keys of a parameter or transform file, each with its values.

    Parameters
    ----------
    values : mapping of str to tuple of str
        Strings without their quotes, numbers as they were written.
    source : str
        The file, for the messages.

    Examples
    --------
    >>> from regnet_itk import ParameterMap
    >>> affine = ParameterMap({"Transform": ("AffineTransform",), "NumberOfResolutions": ("4",)})
    >>> affine.get_int("NumberOfResolutions", 3)
    4
    >>> print(affine.with_(NumberOfResolutions=2).to_text())
    (Transform "AffineTransform")
    (NumberOfResolutions 2)
    """

    values: Mapping[str, tuple[str, ...]]
    source: str = "<memory>"

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> tuple[str, ...]:
        try:
            return self.values[key]
        except KeyError:
            raise ParameterError(f"{self.source}: the key '{key}' is missing") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    @property
    def registration(self) -> str:
        """The kind of registration that the map asks for."""
        return self.get_str("Registration", ELASTIX_REGISTRATIONS[0])

    @property
    def is_elastix(self) -> bool:
        """Whether the map describes a stage that elastix computes."""
        return self.registration in ELASTIX_REGISTRATIONS

    def get_str(self, key: str, default: str | None = None) -> str:
        """Return the first value of `key`.

        Raises
        ------
        ParameterError
            If the key is missing and there is no default.
        """
        if default is not None and key not in self.values:
            return default
        return self[key][0]

    def get_float(self, key: str, default: float | None = None) -> float:
        """Return the first value of `key` as a number; a ParameterError says if it is none."""
        if default is not None and key not in self.values:
            return default
        return self._convert(key, self[key][0], float, "a number")

    def get_int(self, key: str, default: int | None = None) -> int:
        """Return the first value of `key` as a whole number; a ParameterError says if it is none."""
        if default is not None and key not in self.values:
            return default
        return self._convert(key, self[key][0], to_whole, "a whole number")

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """Return the first value of `key`, which must be "true" or "false", else a ParameterError says so."""
        if default is not None and key not in self.values:
            return default
        return self._convert(key, self[key][0], {"true": True, "false": False}.__getitem__, '"true" or "false"')

    def get_floats(self, key: str, count: int | None = None, default: Iterable[float] | None = None) -> list[float]:
        """Return all values of `key` as numbers; with `count`, there must be as many."""
        if default is not None and key not in self.values:
            return list(default)
        return self._all(key, count, float, "a number")

    def get_ints(self, key: str, count: int | None = None, default: Iterable[int] | None = None) -> list[int]:
        """Return all values of `key` as whole numbers; with `count`, there must be as many."""
        if default is not None and key not in self.values:
            return list(default)
        return self._all(key, count, to_whole, "a whole number")

    def _all(self, key: str, count: int | None, convert: Callable[[str], Any], kind: str) -> list[Any]:
        values = self[key]
        if count is not None and len(values) != count:
            raise ParameterError(f"{self.source}: '{key}' has {len(values)} values, and needs {count}")
        return [self._convert(key, value, convert, kind) for value in values]

    def _convert(self, key: str, value: str, convert: Callable[[str], Any], kind: str) -> Any:
        try:
            return convert(value)
        except (ValueError, KeyError):
            raise ParameterError(f"{self.source}: '{key}' must be {kind}, not '{value}'") from None

    def with_(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> ParameterMap:
        """Return a copy with changed or added keys.

        Parameters
        ----------
        changes : mapping, optional
            Key and new value, or values; numbers and truth values are turned into elastix's text.
        **more
            The same as keywords.
        """
        new = {key: as_values(value) for key, value in {**(changes or {}), **more}.items()}
        return replace(self, values={**self.values, **new})

    def without(self, *keys: str) -> ParameterMap:
        """Return a copy that lacks the given keys."""
        return replace(self, values={k: v for k, v in self.values.items() if k not in keys})

    def to_text(self) -> str:
        """Return the map in elastix's own syntax, a key a line."""
        return "".join(f"({key} {' '.join(map(_text_value, values))})\n" for key, values in self.values.items())

    def to_toml(self) -> str:
        """Return the map as TOML, as elastix 5.2 and later read it."""
        return "".join(f"{key} = {_toml_values(values)}\n" for key, values in self.values.items())


def to_whole(text: str) -> int:
    """Return a whole number that may be written as "3" or "3.0"; a ValueError if it is none."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


def as_values(value: Any) -> tuple[str, ...]:
    """Return a value, or a sequence of values, as the strings of a parameter map."""
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable):
        return tuple(text for item in value for text in as_values(item))
    return (str(value) if isinstance(value, int) else repr(float(value)),)


def _text_value(value: str) -> str:
    return value if _NUMBER.fullmatch(value) else f'"{value}"'


def _toml_value(value: str) -> str:
    if value in ("true", "false") or _TOML_NUMBER.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _toml_values(values: tuple[str, ...]) -> str:
    items = [_toml_value(value) for value in values]
    return items[0] if len(items) == 1 else f"[{', '.join(items)}]"


def decode_text(raw: bytes) -> str:
    """Return the text of a parameter or transform file: UTF-8, or with comments in Latin-1, as older editors wrote.

    Raises
    ------
    UnicodeDecodeError
        If it is neither, or if anything but comments is not UTF-8: a path, for instance, would name another file.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        lines = raw.decode("latin-1").splitlines()
        if b"\0" in raw or not all(line.partition("//")[0].isascii() for line in lines):
            raise
        return "\n".join(lines)


def parse_parameter_text(text: str, source: str = "<text>") -> ParameterMap:
    """Parse elastix's own syntax: ``(Key value value ..)``, one a line, ``//`` begins a comment.

    Parameters
    ----------
    text : str
        The content of a parameter or transform file.
    source : str
        The file, for the messages.

    Raises
    ------
    ParameterError
        With file and line, at a missing parenthesis, an unbalanced quote, a missing value or a repeated key.
    """
    values: dict[str, tuple[str, ...]] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.replace("\t", " ").strip(" \r")
        if not line or line.startswith("//"):
            continue
        if odd := _CONTROL.search(line):
            raise ParameterError(
                f"{source}, line {number}: it is damaged, or no text file: it holds the character number {ord(odd[0])}"
            )
        key, found = _parse_line(line, f"{source}, line {number}")
        if key in values:
            raise ParameterError(f"{source}, line {number}: the key '{key}' is given twice; remove one of the lines")
        values[key] = found
    return ParameterMap(values, source)


def _parse_line(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    match = _LINE.fullmatch(line)
    if match is None:
        code = re.sub(r"//[^\"]*$", "", line)
        if code.count('"') % 2:
            raise ParameterError(f"{where}: a quote is not closed: {_short(line)}")
        raise ParameterError(f"{where}: expected '(Key value ..)' in parentheses, not: {_short(line)}")
    if "//" in match["body"]:
        raise ParameterError(f"{where}: for elastix '//' begins a comment, within quotes too: {_short(line)}")
    if match["body"].startswith(" "):
        raise ParameterError(
            f"{where}: the key must follow the parenthesis at once, as elastix reads it: {_short(line)}"
        )
    body = match["body"].rstrip(" ")
    tokens, position = [], 0
    while position < len(body):
        token = _TOKEN.match(body, position)
        if token is None:
            raise ParameterError(f"{where}: a quote stands within a value: {_short(line)}")
        tokens.append(token)
        position = token.end()
    if not tokens or tokens[0]["bare"] is None:
        raise ParameterError(f"{where}: expected '(Key value ..)' with a key that is not quoted, not: {_short(line)}")
    key = tokens[0]["bare"]
    if odd := _NOT_IN_KEYS.search(key):
        raise ParameterError(f"{where}: '{odd[0]}' cannot be in a key: {_short(line)}")
    found = tuple(token["bare"] if token["bare"] is not None else token["quoted"] for token in tokens[1:])
    if not found or not all(value.strip() for value in found):
        raise ParameterError(f"{where}: the key '{key}' has an empty value; give one or remove the line")
    return key, found


def _short(line: str) -> str:
    return line if len(line) <= 80 else f"{line[:77]}..."


def parse_parameter_toml(text: str, source: str = "<text>") -> ParameterMap:
    """Parse a map written as TOML, ``Key = value`` or ``Key = [value, value]``.

    Raises
    ------
    ParameterError
        If it is not TOML, or holds something that elastix has no meaning for (tables, dates, empty lists).
    """
    try:
        content = tomllib.loads(text, parse_float=str)
    except RecursionError:
        raise ParameterError(f"{source} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ParameterError(f"{source} is not valid TOML: {error}") from None
    values: dict[str, tuple[str, ...]] = {}
    for key, value in content.items():
        items = value if isinstance(value, list) else [value]
        if not items or any(item == "" for item in items):
            raise ParameterError(f"{source}: the key '{key}' has an empty value; give one or remove the line")
        if not all(isinstance(item, str | int) for item in items):
            raise ParameterError(
                f"{source}: the value of '{key}' must be text, numbers or true/false, or a list of them"
            )
        values[key] = as_values(items)
    return ParameterMap(values, source)


def shipped_parameter_files() -> dict[str, Path]:
    """Return the parameter files that come with the package, by name.

    Examples
    --------
    >>> from regnet_itk import shipped_parameter_files
    >>> "affine" in shipped_parameter_files()
    True
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "parameter_files", package.parent / "parameter_files"):
        files = sorted(p for p in folder.glob("*") if p.suffix in PARAMETER_SUFFIXES) if folder.is_dir() else []
        if files:
            return {file.stem: file for file in files}
    return {}


def read_parameter_map(path_or_name: str | Path) -> ParameterMap:
    """Read a parameter file.

    Parameters
    ----------
    path_or_name : str or Path
        A .toml file, a text file in elastix's syntax, or the name of a file that comes with the package, for
        example ``"affine"`` or ``"regnet"``.

    Raises
    ------
    ParameterError
        If it does not exist or is malformed.

    Examples
    --------
    >>> from regnet_itk import read_parameter_map
    >>> read_parameter_map("regnet_multistage")["RegNetModel"]
    ('regnet_multistage',)
    """
    path = Path(path_or_name)
    if why_no_file(path) in (MISSING, FOLDER):
        path = _shipped(str(path_or_name))
    if (why := why_no_file(path)) is not None:
        raise ParameterError(f"parameter file '{path}' {why}")
    try:
        text = decode_text(path.read_bytes())
    except UnicodeDecodeError:
        raise ParameterError(f"parameter file '{path}' is not a text file") from None
    except OSError as error:
        raise ParameterError(f"parameter file '{path}' cannot be read: {error.strerror}") from None
    parse = parse_parameter_toml if path.suffix.lower() == ".toml" else parse_parameter_text
    found = parse(text, str(path))
    if not found.values:
        raise ParameterError(f"parameter file '{path}' is empty")
    return found


def _shipped(name: str) -> Path:
    shipped = shipped_parameter_files()
    if name in shipped:
        return shipped[name]
    if Path(name).is_dir():
        raise ParameterError(f"parameter file '{name}' {FOLDER}")
    near = did_you_mean(Path(name).stem, shipped)
    known = ", ".join(shipped) or "none found"
    raise ParameterError(
        f"parameter file '{name}' does not exist{near}; give the path of a file, or the name of one that comes "
        f"with the package ({known})"
    )


def write_parameter_map(parameter_map: ParameterMap, path: str | Path) -> None:
    """Write a map, as TOML if the suffix is .toml and in elastix's syntax otherwise, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.

    Examples
    --------
    >>> from regnet_itk import read_parameter_map, write_parameter_map
    >>> quick = read_parameter_map("affine").with_(MaximumNumberOfIterations=100)
    >>> write_parameter_map(quick, "quick.txt")
    >>> read_parameter_map("quick.txt").get_int("MaximumNumberOfIterations", 0)
    100
    """
    from regnet_itk.outputs import write_whole

    text = parameter_map.to_toml() if Path(path).suffix.lower() == ".toml" else parameter_map.to_text()
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
