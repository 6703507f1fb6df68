"""The program ``regnet-itk``: finds the command, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import keyword
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.run_log import WarningsToStderr, tell
from regnet_itk.errors import InterruptedRunError, RegNetItkError, did_you_mean
from regnet_itk.run_log import heard_by
from regnet_itk.threads import wait_briefly

_COMMANDS = {
    "run": "Register two images by a chain of elastix and RegNet stages.",
    "batch": "Register many pairs, on one machine or many.",
    "train": "Train a network on a folder of images.",
    "synthesize": "Make pairs of images with a known displacement, as in the paper.",
    "models": "List the models that ship, and explain one.",
    "example": "Write a digital chest phantom and register it.",
    "compare": "Compare several methods on a set of pairs: the paper's table and figures.",
    "import": "Turn a public data set (DIR-Lab) into images, landmarks and a list of pairs.",
    "transform": "Apply a transform to images, segmentations or points; its Jacobian.",
    "follow-up": "Find lesions of one date at another, and tell how they grew.",
    "ventilation": "Map how lungs expand, and how their density changes.",
    "judge": "Say how far to trust a transform that any program found.",
    "invert": "Invert a transform, and say how exact that is.",
    "info": "Say what a file is, and what looks wrong in it.",
    "convert": "Convert transforms: elastix, ITK, displacement fields, B-splines.",
    "shim": "Write programs that stand in for elastix and transformix, for 3D Slicer and MITK.",
    "report": "Make one HTML page of a finished registration: a viewer, errors, parameters.",
    "repair": "Mend the paths in transform files after a folder was moved.",
}

_MAY_BE_EMPTY = ("--methods", "--title")

FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 1, 2, 130, 143

NOT_INVERTED = 3
"""Exit status when the results were written, and a part of them has no inverse."""

NOT_TO_BE_USED = 4
"""Exit status when the results were written, and ``--strict`` asks to tell by it that their verdict is "failed"."""


class StrictCommand(click.Command):
    """A command that refuses unknown flags with the nearest right one.

    click would read ``-fmask FILE`` as ``-f mask``; elastix's flags are long words with one dash, so a misspelt one
    must not pass as a short one.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the flags, then parse as usual."""
        known = {flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", "-h"}
        for before, word in zip(["", *args], args, strict=False):
            if not word.strip() and before not in _MAY_BE_EMPTY:  # an empty path would be the current folder
                raise click.UsageError(f"{f'{before} is' if before else 'an argument is'} empty; give a value", ctx)
            _check_encoding(word, ctx)
            flag = word.split("=")[0] if word.startswith("--") else word
            if word.startswith("-") and flag not in known and not _is_number(word):
                raise click.UsageError(f"there is no option '{flag}'{did_you_mean(flag, known)}", ctx)
        return super().parse_args(ctx, args)


def _check_encoding(word: str, ctx: click.Context) -> None:
    """Refuse what is not UTF-8, as the paths in elastix's and our own files are."""
    try:
        word.encode()
    except UnicodeEncodeError:
        shown = word.encode("ascii", "backslashreplace").decode()
        raise click.UsageError(f"'{shown}' is not UTF-8; rename the file or folder", ctx) from None


class _Commands(click.Group):
    """The commands, each imported when it is used, so that help comes at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            raise click.UsageError(f"there is no command '{cmd_name}'{did_you_mean(cmd_name, _COMMANDS)}", ctx)
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name.replace("-", "_")
        module = importlib.import_module(f"regnet_itk.cli.{name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:  # click would take it for the end of what a person types, and end as after Ctrl-C
            raise RuntimeError(f"unexpected end of a file: {error}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="regnet-itk")
def cli() -> None:
    """RegNet as a registration stage beside elastix.

    T(x) = x + u(x) maps points of the fixed image to the moving image, in mm, LPS.
    """


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def terminated(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: the handler of SIGTERM."""
    raise SystemExit(TERMINATED)  # unwinds the stack, so that temporary files and child processes go


def _fail(message: object, status: int) -> int:
    tell(f"regnet-itk: error: {' '.join(name_flags(str(message)).split())}")
    return status


def _open_closed_streams() -> None:
    """Put something in the place of standard streams that are closed: else the next file opened would be one of them.

    What is printed on standard error is lost then; printing on standard output fails.
    """
    for number, (name, mode) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _flushed(status: int) -> int:
    """Return the exit status, which is not that of success if what was printed could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at its end
        return status or (FAILED if isinstance(error, BrokenPipeError) else _fail_to_print(error))
    return status


def _fail_to_print(error: OSError) -> int:
    return _fail(f"cannot write to standard output: {error.strerror}", FAILED)


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with its status: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143 terminated."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, terminated)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, terminated)
    wait_briefly()
    with heard_by(WarningsToStderr()):
        sys.exit(_flushed(_run(arguments)))


def _run(arguments: list[str] | None) -> int:
    if not (sys.argv[1:] if arguments is None else arguments):
        arguments = ["--help"]
    try:
        status: Any = cli(arguments, prog_name="regnet-itk", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        return _fail(f"{error.format_message()} (see regnet-itk {_command_of(error)}--help)", WRONG_USE)
    except click.exceptions.Exit as error:
        return error.exit_code
    except InterruptedRunError as error:
        return _fail(error, INTERRUPTED)
    except RegNetItkError as error:
        return _fail(error, FAILED)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:  # whoever read standard output has seen enough
        return FAILED
    except OSError as error:
        return _fail(f"'{error.filename}': {error.strerror}" if error.filename else error, FAILED)
    except RecursionError:
        return _fail("a file is nested too deeply to be read", FAILED)
    except MemoryError:
        return _fail("out of memory; use smaller images, a mask, or a smaller (RegNetMemoryBudget ..)", FAILED)
    except Exception as error:
        if os.environ.get("REGNET_ITK_TRACEBACK"):
            raise
        return _fail(
            f"internal error, please report it: {type(error).__name__}: {error} "
            "(set REGNET_ITK_TRACEBACK=1 to see where)",
            FAILED,
        )


def _command_of(error: click.UsageError) -> str:
    name = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    return f"{name} " if name else ""


if __name__ == "__main__":
    main()
