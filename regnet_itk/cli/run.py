"""``regnet-itk run``: elastix's command line, with RegNet stages."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli.main import StrictCommand

if TYPE_CHECKING:
    from regnet_itk.metrics.measures import ErrorSummary
    from regnet_itk.results import RegistrationResult, StageReport

PRIORITIES = ["high", "abovenormal", "normal", "belownormal", "idle"]
LOG_LEVELS = ["info", "warning", "error", "off"]


@click.command("run", cls=StrictCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-f", "fixed", required=True, metavar="IMAGE", help="Fixed image: .mha .mhd .nii(.gz) .nrrd or DICOM folder."
)
@click.option("-m", "moving", required=True, metavar="IMAGE", help="Moving image.")
@click.option("-out", "out", required=True, metavar="DIR", type=Path, help="Output folder; created if needed.")
@click.option(
    "-p", "stages", multiple=True, metavar="FILE|NAME",
    help="Parameter file of a stage (.txt or .toml), or the name of a shipped one; repeat for more stages. "
    "Default: affine, then regnet_multistage.",
)  # fmt: skip
@click.option(
    "-fMask", "fixed_mask", metavar="IMAGE", help="Mask on the fixed image's grid; voxels other than 0 count."
)
@click.option("-mMask", "moving_mask", metavar="IMAGE", help="Mask on the moving image's grid.")
@click.option("-t0", "initial", metavar="FILE", help="Transform file (elastix or ITK) to start from.")
@click.option("-fp", "fixed_points", metavar="FILE", help="Landmarks of the fixed image, to report the error with -mp.")
@click.option("-mp", "moving_points", metavar="FILE", help="Landmarks of the moving image.")
@click.option(
    "--both-ways", "both_ways", is_flag=True,
    help="Register the fixed to the moving image as well, into DIR/backward, and say how well both ways agree.",
)  # fmt: skip
@click.option("-threads", "threads", type=click.IntRange(min=1), help="CPU threads; all by default.")
@click.option("-priority", "priority", type=click.Choice(PRIORITIES), help="Priority of elastix's process.")
@click.option(
    "-loglevel", "loglevel", type=click.Choice(LOG_LEVELS), default="info", help="What is shown on the screen."
)
@click.option("--device", default="auto", show_default=True, help="Of the networks: auto, cpu, cuda, cuda:N or mps.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of elastix's samplers, in place of RandomSeed.")
def command(**given: Any) -> None:
    """Register the moving to the fixed image by a chain of elastix and RegNet stages.

    Writes to DIR, for each stage N: TransformParameters.N.txt, result.N.<format>, and for RegNet
    deformationField.N.mha; at the end TransformParameters.N-Composite.h5 (ITK, SimpleITK), registration.json,
    registration.png and regnet-itk.log. With --both-ways, the same of the way back to DIR/backward.
    """
    run(**given)


def run(
    fixed: str,
    moving: str,
    out: Path,
    *,
    stages: tuple[str, ...] = (),
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
    initial: str | None = None,
    fixed_points: str | None = None,
    moving_points: str | None = None,
    both_ways: bool = False,
    threads: int | None = None,
    priority: str | None = None,
    loglevel: str = "info",
    device: str = "auto",
    seed: int | None = None,
) -> RegistrationResult:
    """Do what the command says; the parameters are its options."""
    from regnet_itk.cli.progress import StageProgress
    from regnet_itk.outputs import check_writable
    from regnet_itk.registration import DEFAULT_STAGES, register
    from regnet_itk.results import BACKWARD_FOLDER

    check_writable(out)
    if both_ways:
        check_writable(out / BACKWARD_FOLDER)
    if threads:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)  # of resampling; the stages know their own
    started, lines = time.perf_counter(), _Log()
    shown = StageProgress(loglevel)

    def log(line: str) -> None:
        lines.add(line)
        if line.startswith("warning"):
            shown.warn(line)
        elif line.startswith(("before", "both ways")):
            shown.say(line)

    planned = stages or DEFAULT_STAGES
    with shown, _warnings_to(log, loglevel):

        def report(number: int, done: StageReport) -> None:
            way = "backward " if number >= len(planned) else ""
            shown.say(f"stage {number} {way}{done.name}: {done.seconds:.1f} s{_tre(done.tre)}")

        result = register(
            fixed, moving, planned,
            fixed_mask=fixed_mask, moving_mask=moving_mask, initial=initial,
            fixed_landmarks=fixed_points, moving_landmarks=moving_points, both_ways=both_ways,
            threads=threads, seed=seed, device=device, priority=priority,
            progress=shown.show, report=report, log=log,
        )  # fmt: skip
        lines.add(f"total {time.perf_counter() - started:.1f} s")
        result.write(out, lines.lines)
        shown.say(
            f"written to {out} in {time.perf_counter() - started:.1f} s; det J <= 0 at {result.folding:.3%} of the "
            f"voxels; see {out / 'registration.png'}"
        )
    return result


def _tre(tre: ErrorSummary | None) -> str:
    from regnet_itk.results import describe_error

    return f", TRE {describe_error(tre)}" if tre else ""


@contextmanager
def _warnings_to(log: Callable[[str], None], loglevel: str) -> Iterator[None]:
    """Log this package's warnings; those of other libraries are shown only if warnings are wanted at all."""

    class ToLog(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log(f"warning: {record.getMessage()}")

    logger, handler = logging.getLogger("regnet_itk"), ToLog(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if loglevel in ("error", "off"):
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)


class _Log:
    """The lines of the log, each with the time since the start."""

    def __init__(self) -> None:
        self.started, self.lines = time.perf_counter(), list[str]()

    def add(self, line: str) -> None:
        self.lines.append(f"[{time.perf_counter() - self.started:8.2f}] {line}")
