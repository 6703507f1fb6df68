"""Stand in for the programs ``elastix`` and ``transformix`` that 3D Slicer, MITK and scripts call.

They find two launchers in a folder; these take elastix's arguments, write its files, stream its log to stdout, end with
its exit statuses, and know RegNet stages besides.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_itk.elastix.numbered_flags import in_order, split_number
from regnet_itk.errors import OutputError, ParameterError, RegNetItkError, did_you_mean
from regnet_itk.events import LOGGER, Progress
from regnet_itk.outputs import check_writable, staged_folder, write_whole
from regnet_itk.registration_events import RegistrationEvents
from regnet_itk.transforms.itk_files import write_itk

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

PROGRAMS = ("elastix", "transformix")
ELASTIX_VERSION = "5.3.1"
"""What ``--version`` says: the elastix whose arguments and files these are."""

DONE, FAILED, NO_FOLDER, MISSING = 0, 1, 254, 255
"""elastix's exit statuses: the last is for a missing ``-p`` or ``-tp``, the one before for a missing ``-out``."""

PRESETS = "parameter_files"
"""The folder beside the launchers with the shipped stages, set up for programs that read elastix's .mhd files."""

_MARK = "written by regnet-itk shim"
_FLAGS = {
    "elastix": (
        "-f",
        "-m",
        "-out",
        "-p",
        "-fMask",
        "-mMask",
        "-t0",
        "-fp",
        "-mp",
        "-priority",
        "-threads",
        "-loglevel",
    ),
    "transformix": ("-tp", "-out", "-in", "-def", "-jac", "-jacmat", "-priority", "-threads", "-loglevel"),
}
# Slicer sets these for its own Python and ITK; the launchers give them back the values of whoever wrote the launchers.
_SURROUNDINGS = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "ITK_AUTOLOAD_PATH",
)  # fmt: skip


# The launchers


def write_launchers(
    folder: str | Path,
    python: str = sys.executable,
    windows: bool = os.name == "nt",
    environment: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Write the launchers ``elastix`` and ``transformix``, and parameter files for the programs that call them.

    Parameters
    ----------
    folder : str or Path
        Created if needed.
    python : str
        The interpreter that has this package.
    windows : bool
        Write .cmd files, not shell scripts.
    environment : mapping
        The launchers set the variables that concern Python and libraries as they are here.

    Returns
    -------
    list of Path
        The launchers.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds a program of that name that was not written here.
    """
    folder = Path(folder)
    check_writable(folder)
    files = [folder / (f"{program}.cmd" if windows else program) for program in PROGRAMS]
    for file in files:
        if file.exists() and not (file.is_file() and _MARK.encode() in file.read_bytes()[:400]):
            raise OutputError(f"'{file}' exists and is not a launcher of regnet-itk; choose another folder")
    _write_presets(folder / PRESETS)
    for file, program in zip(files, PROGRAMS, strict=True):
        text = _command_file(program, python, environment) if windows else _script(program, python, environment)
        write_whole(file, lambda part, text=text: _write_executable(part, text))  # type: ignore[misc]
    return files


def _write_executable(part: Path, text: str) -> None:
    part.write_bytes(text.encode())
    part.chmod(0o755)


def _script(program: str, python: str, environment: Mapping[str, str]) -> str:
    lines = ["#!/bin/sh", f"# {_MARK}: stands in for {program}"]
    for name in _SURROUNDINGS:
        if name in environment:
            lines += [f"{name}={shlex.quote(environment[name])}", f"export {name}"]
        else:
            lines.append(f"unset {name}")
    return "\n".join([*lines, f'exec {shlex.quote(python)} -P -m regnet_itk.cli.shim {program} "$@"', ""])


def _command_file(program: str, python: str, environment: Mapping[str, str]) -> str:
    lines = ["@echo off", f"rem {_MARK}: stands in for {program}", "setlocal"]
    lines += [f'set "{name}={environment.get(name, "")}"'.replace("%", "%%") for name in _SURROUNDINGS]
    python = python.replace("%", "%%")
    return "\r\n".join([*lines, f'"{python}" -P -m regnet_itk.cli.shim {program} %*', "exit /b %ERRORLEVEL%", ""])


def _write_presets(folder: Path) -> None:
    from regnet_itk.parameters import read_parameter_map, shipped_parameter_files

    with staged_folder(folder) as stage:
        for name in shipped_parameter_files():
            values = read_parameter_map(name).with_(
                ResultImageFormat="mhd",  # what Slicer looks for
                CompressResultImage=False,
                ITKTransformOutputFileNameExtension="h5",
                WriteITKCompositeTransform=True,
            )
            (stage / f"{name}.txt").write_text(values.to_text(), encoding="utf-8")


# The programs


class WrongCall(RegNetItkError):
    """A command line that elastix refuses before it looks at a file; `status` is its exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """A command line of elastix or transformix.

    Parameters
    ----------
    program : {"elastix", "transformix"}
    values : mapping
        Flag to values; ``-p`` may have several, and so may the flags of images, in the order of their numbers.
    """

    program: str
    values: Mapping[str, tuple[str, ...]]

    def one(self, flag: str) -> str | None:
        """Return the value of a flag, or None if it is not given."""
        return self.values[flag][-1] if flag in self.values else None


def parse_call(program: str, words: Sequence[str]) -> Call:
    """Take a command line apart.

    Parameters
    ----------
    program : {"elastix", "transformix"}
    words : sequence of str
        Without the program itself.

    Raises
    ------
    WrongCall
        At a flag that does not exist or has no value, and without what is mandatory. elastix itself takes the first
        two without a word.
    """
    known, given = _FLAGS[program], dict[str, list[tuple[int, str]]]()
    for position in range(0, len(words), 2):
        flag, number = split_number(words[position])
        if flag not in known:
            raise WrongCall(f'there is no option "{words[position]}"{did_you_mean(words[position], known)}')
        if position + 1 == len(words):
            raise WrongCall(f'the option "{words[position]}" needs a value')
        before = given.setdefault(flag, [])
        before.append((len(before) if flag == "-p" else number, words[position + 1]))
    try:
        values = {flag: in_order(flag, several) for flag, several in given.items()}
    except ValueError as error:
        raise WrongCall(str(error)) from None
    for flag, status in (("-p" if program == "elastix" else "-tp", MISSING), ("-out", NO_FOLDER)):
        if flag not in values:
            raise WrongCall(f'No CommandLine option "{flag}" given!', status)
    if program == "elastix":
        for flag, what in (("-f", "fixed"), ("-m", "moving")):
            if flag not in values:
                raise WrongCall(f'could not read {what} image: "{flag}" is unspecified')
    elif not {"-in", "-def", "-jac", "-jacmat"} & set(values):
        raise WrongCall(
            'At least one of the CommandLine options "-in", "-def", "-jac", or "-jacmat" should be given!', MISSING
        )
    return Call(program, values)


def run_elastix(call: Call) -> None:
    """Register as elastix does: its files, in its folder; its log, and how far a network is, to the logger.

    Parameters
    ----------
    call : Call

    Raises
    ------
    RegNetItkError
        As `regnet_itk.register` and `RegistrationResult.write`.
    """
    from regnet_itk.registration import register
    from regnet_itk.results import RegistrationResult

    began = time.perf_counter()
    threads = _threads(call)
    maps = [_as_elastix_would(name) for name in call.values["-p"]]
    result = register(
        call.values["-f"], call.values["-m"], maps,
        fixed_mask=call.values.get("-fMask"), moving_mask=call.values.get("-mMask"), initial=call.one("-t0"),
        fixed_landmarks=call.one("-fp"), moving_landmarks=call.one("-mp"),
        threads=threads, priority=call.one("-priority"), events=_NetworkToLog(),
    )  # fmt: skip
    out = Path(str(call.one("-out")))
    with staged_folder(out) as stage:
        result.write_stages(stage, out.resolve())
        for number, report in enumerate(result.stages):
            suffix = _composite_suffix(report.parameters)
            if suffix and isinstance(result, RegistrationResult):  # else elastix has written it
                file = stage / f"TransformParameters.{number}-Composite.{suffix}"
                write_itk(type(result.chain)(result.chain.links[: report.links]), file, result.pair.fixed.grid)
    LOGGER.info(f"\nTotal time elapsed: {time.perf_counter() - began:.1f}s.")


def _threads(call: Call) -> int | None:
    given = call.one("-threads")
    if given is None:
        return None
    if not given.isdigit() or int(given) < 1:
        raise ParameterError(f"-threads needs a whole number above 0, not '{given}'")
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(int(given))
    return int(given)


def _as_elastix_would(name: str) -> ParameterMap:
    """Read a parameter file; results have elastix's usual format unless it says another."""
    from regnet_itk.parameters import read_parameter_map

    values = read_parameter_map(name)
    _composite_suffix(values)
    usual = {"ResultImageFormat": "mhd", "CompressResultImage": "false"}
    return values.with_({key: value for key, value in usual.items() if key not in values})


def _composite_suffix(values: ParameterMap) -> str | None:
    """Return the suffix of the composite transform that a stage shall write, or None; all but elastix's write one."""
    from regnet_itk.data.suffixes import ITK_SUFFIXES

    suffix = values.get_str("ITKTransformOutputFileNameExtension", "" if values.is_elastix else "h5")
    if not suffix or not values.get_bool("WriteITKCompositeTransform", not values.is_elastix):
        return None
    if f".{suffix}" not in ITK_SUFFIXES:
        known = ", ".join(known.removeprefix(".") for known in ITK_SUFFIXES)
        raise ParameterError(f"{values.source}: ITKTransformOutputFileNameExtension is one of {known}, not '{suffix}'")
    return suffix


class _NetworkToLog(RegistrationEvents):
    """Logs how far a stage is that elastix does not compute; elastix's own log says it by itself."""

    def __init__(self) -> None:
        self._logged = (-1, 0.0)

    def progress(self, now: Progress) -> None:
        stage, fraction = self._logged
        if now.name.startswith("RegNet") and (now.number != stage or now.fraction - fraction >= 0.1):
            self._logged = now.number, now.fraction
            self.log.info(f"{now.name}: {now.fraction:.0%} {now.text}")


def usage(program: str) -> str:
    """Return what the program says when it is called without arguments."""
    return f'Use "{program} --help" for information about {program}-usage.'
