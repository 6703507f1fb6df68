"""``regnet-itk shim``: launchers that stand in for elastix and transformix, and the programs behind them."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import INTERRUPTED, StrictCommand, terminated
from regnet_itk.cli.options import LOG_LEVELS
from regnet_itk.errors import RegNetItkError
from regnet_itk.interfaces.stand_ins import (
    ELASTIX_VERSION,
    FAILED,
    PRESETS,
    Call,
    WrongCall,
    parse_call,
    run_elastix,
    usage,
)
from regnet_itk.run_log import heard_by

_SHOWN_FROM = dict(zip(LOG_LEVELS, (logging.DEBUG, logging.WARNING, logging.ERROR, logging.CRITICAL), strict=True))


@click.command("shim", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="DIR", type=Path)
def command(folder: Path) -> None:
    """Write programs named elastix and transformix to DIR, for 3D Slicer, MITK and scripts that call elastix.

    They take elastix's arguments, write its files, and know RegNet stages besides. DIR/parameter_files holds the
    shipped stages, set up for these programs.
    """
    from regnet_itk.interfaces.stand_ins import write_launchers

    files = write_launchers(folder)
    print(f"{' and '.join(map(str, files))} written; parameter files are in {folder / PRESETS}")
    print(
        f"in 3D Slicer (SlicerElastix: 'Custom Elastix toolbox location') and MITK, name the folder {folder.resolve()}"
    )


_HELP = {
    "elastix": """elastix version: {version}

regnet-itk stands in for elastix: it registers a moving image to a fixed image.
The stages are specified in parameter files, those of elastix and of RegNet.
  --help, -h displays this message and exit
  --version  output version information and exit
  --extended-version  output extended version information and exit

Call elastix from the command line with mandatory arguments:
  -f        fixed image
  -m        moving image
  -out      output directory; created if needed
  -p        parameter file, elastix handles 1 or more "-p"

Optional extra commands:
  -fMask    mask for fixed image
  -mMask    mask for moving image
            several images and masks: -f0 -f1 .. -m0 -m1 .. -fMask0 ..
  -fp       point set for fixed image, of metrics that are guided by points;
            with -mp, the error of the points is reported as well
  -mp       point set for moving image
  -t0       parameter file for initial transform
  -priority set the process priority to high, abovenormal, normal (default),
            belownormal, or idle
  -threads  set the maximum number of threads of elastix
  -loglevel info (default), warning, error or off""",
    "transformix": """transformix version: {version}

regnet-itk stands in for transformix: it applies a transform on an input image
and/or generates a deformation field.
  --help, -h displays this message and exit
  --version  output version information and exit
  --extended-version  output extended version information and exit

Call transformix from the command line with mandatory arguments:
  -out      output directory; created if needed
  -tp       transform-parameter file, only 1

Optional extra commands:
  -in       input image to deform
  -def      file containing input-image points; use "-def all" to generate a
            deformation field
  -jac      use "-jac all" to generate an image with the determinant of the
            spatial Jacobian
  -jacmat   use "-jacmat all" to generate an image with the spatial Jacobian
            matrix at each voxel
  -threads  set the maximum number of threads of transformix
  -loglevel info (default), warning, error or off

At least one of the options "-in", "-def", "-jac", or "-jacmat" should be given.""",
}


def stand_in(words: list[str]) -> int:
    """Do what elastix or transformix does, and return its exit status.

    Parameters
    ----------
    words : list of str
        The program's name and its arguments.
    """
    program, *arguments = words
    signal.signal(signal.SIGTERM, terminated)
    if _answered(program, arguments):
        return 0
    try:
        call = parse_call(program, arguments)
    except WrongCall as error:
        print(f"ERROR: {error}", flush=True)
        return error.status
    return _logged(call)


def _answered(program: str, arguments: list[str]) -> bool:
    """Answer a question about the program itself, if it is one."""
    if not arguments:
        print(usage(program))
    elif arguments[0] in ("--help", "-h", "-help"):
        print(_HELP[program].format(version=ELASTIX_VERSION))
    elif arguments[0] == "--version":
        print(f"{program} version: {ELASTIX_VERSION}")
    elif arguments[0] == "--extended-version":
        from importlib.metadata import version

        print(f"{program} version: {ELASTIX_VERSION}")
        print(f"regnet-itk version: {version('regnet-itk')}\nitk-elastix version: {version('itk-elastix')}")
        print(f"Python version: {platform.python_version()}")
    else:
        return False
    return True


def _logged(call: Call) -> int:
    """Run a program with its log on stdout and in its output folder."""
    out, level = Path(str(call.one("-out"))), call.one("-loglevel") or "info"
    if level not in LOG_LEVELS:
        print(f"ERROR: -loglevel is one of {', '.join(LOG_LEVELS)}, not '{level}'", flush=True)
        return FAILED
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / f"{call.program}.log").open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        print(f"ERROR: cannot write to the output directory '{out}': {error.strerror}", flush=True)
        return FAILED
    said = _Log(file, level)
    with file, heard_by(said):
        said.info(f"{call.program} is started at {time.asctime()}.\n\nELASTIX version: {ELASTIX_VERSION}")
        try:
            _PROGRAMS[call.program](call)
        except (RegNetItkError, click.ClickException) as error:
            said.error(error.format_message() if isinstance(error, click.ClickException) else str(error))
            return FAILED
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            said.error(f"internal error, please report it: {type(error).__name__}: {error}")
            return FAILED
    return 0


class _Log(logging.Handler):
    """The lines of a program, on the screen and in its log file; all that the library logs is among them."""

    def __init__(self, file: TextIO, level: str) -> None:
        super().__init__(logging.DEBUG)
        self._file, self._shown = file, _SHOWN_FROM[level]

    def emit(self, record: logging.LogRecord) -> None:
        line, level = record.getMessage(), record.levelno
        if level >= logging.WARNING:
            line = f"WARNING: {line}"
        elif line.lower().startswith("warning"):  # of elastix's own log
            level = logging.WARNING
        self._write(line, level)

    def info(self, line: str) -> None:
        self._write(line, logging.INFO)

    def error(self, line: str) -> None:
        self._write(f"ERROR: {name_flags(line)}\n\nErrors occurred!", logging.ERROR)

    def _write(self, line: str, level: int) -> None:
        self._file.write(f"{line}\n")
        if level >= self._shown:
            print(line, flush=True)


def _run_transformix(call: Call) -> None:
    from regnet_itk.cli.transform import command as transform

    words = [word for flag, (value,) in call.values.items() if flag != "-priority" for word in (flag, value)]
    with contextlib.redirect_stderr(sys.stdout):  # where those who call transformix read
        transform.main(words, prog_name="transformix", standalone_mode=False)


_PROGRAMS: dict[str, Callable[[Call], None]] = {
    "elastix": run_elastix,
    "transformix": _run_transformix,
}


if __name__ == "__main__":
    sys.exit(stand_in(sys.argv[1:]))
