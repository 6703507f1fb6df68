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
from regnet_itk.cli.run_log import WarningsToStderr, heard_by
from regnet_itk.errors import InterruptedRunError, RegNetItkError, did_you_mean
from regnet_itk.threads import wait_briefly

_COMMANDS = {
    "run": "Register two images by a chain of elastix and RegNet stages.",
    "train": "Train a network on a folder of images.",
    "synthesize": "Make pairs of images with a known displacement, as in the paper.",
    "models": "List the models that ship, and explain one.",
    "example": "Write a digital chest phantom and register it.",
    "compare": "Compare several methods on a set of pairs: the paper's table and figures.",
    "import": "Turn a public data set (DIR-Lab) into images, landmarks and a list of pairs.",
    "transform": "Apply a transform to images, segmentations or points; its Jacobian.",
    "invert": "Invert a transform, and say how exact that is.",
    "info": "Say what a file is, and what looks wrong in it.",
    "convert": "Convert transforms: elastix, ITK, displacement fields, B-splines.",
    "shim": "Write programs that stand in for elastix and transformix, for 3D Slicer and MITK.",
    "report": "Make one HTML page of a finished registration: a viewer, errors, parameters.",
    "repair": "Mend the paths in transform files after a folder was moved.",
}

FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 1, 2, 130, 143

NOT_INVERTED = 3
"""Exit status when the results were written, and a part of them has no inverse."""


class StrictCommand(click.Command):
    """A command that refuses unknown flags with the nearest right one.

    click would read ``-fmask FILE`` as ``-f mask``; elastix's flags are long words with one dash, so a misspelt one
    must not pass as a short one.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the flags, then parse as usual."""
        known = {flag for parameter in self.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", "-h"}
        for word in args:
            flag = word.split("=")[0] if word.startswith("--") else word
            if word.startswith("-") and flag not in known and not _is_number(word):
                raise click.UsageError(f"there is no option '{flag}'{did_you_mean(flag, known)}", ctx)
        return super().parse_args(ctx, args)


class _Commands(click.Group):
    """The commands, each imported when it is used, so that help comes at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            raise click.UsageError(f"there is no command '{cmd_name}'{did_you_mean(cmd_name, _COMMANDS)}", ctx)
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"regnet_itk.cli.{name}")
        command: click.Command = module.command
        return command

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
    print(f"regnet-itk: error: {' '.join(name_flags(str(message)).split())}", file=sys.stderr)
    return status


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with its status: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, terminated)
    wait_briefly()
    with heard_by(WarningsToStderr()):
        sys.exit(_run(arguments))


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
