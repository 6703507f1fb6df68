"""``regnet-itk run``: elastix's command line, with RegNet stages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import NOT_TO_BE_USED, StrictCommand
from regnet_itk.cli.options import bound_threads
from regnet_itk.cli.screen import Screen
from regnet_itk.elastix.numbered_flags import IMAGE_FLAGS, in_order, split_number

if TYPE_CHECKING:
    from regnet_itk.elastix_results import ElastixResult
    from regnet_itk.metrics.inverse_consistency import InverseConsistency
    from regnet_itk.metrics.measures import ErrorSummary
    from regnet_itk.results import RegistrationResult
    from regnet_itk.stage_report import StageReport
    from regnet_itk.stages.choice import StageChoice
    from regnet_itk.stages.guides import Guides


class _SeveralImages(StrictCommand):
    """Takes elastix's flags of several images: -f0 -f1 .."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the images of each flag in the order of their numbers, then parse as usual."""
        given: dict[str, list[tuple[int, str]]] = {}
        rest: list[str] = []
        words = iter(args)
        for word in words:
            flag, number = split_number(word)
            value = next(words, None) if flag in IMAGE_FLAGS else None
            if value is None:
                rest.append(word)
            else:
                given.setdefault(flag, []).append((number, value))
        try:
            ordered = {flag: in_order(flag, values) for flag, values in given.items()}
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None
        return super().parse_args(
            ctx, [w for flag, values in ordered.items() for v in values for w in (flag, v)] + rest
        )


@click.command("run", cls=_SeveralImages, context_settings=options.HELP)
@click.option(
    "-f", "fixed", required=True, multiple=True, metavar="IMAGE",
    help="Fixed image: .mha .mhd .nii(.gz) .nrrd or DICOM folder. Several for elastix's stages: -f0 -f1 ..",
)  # fmt: skip
@click.option("-m", "moving", required=True, multiple=True, metavar="IMAGE", help="Moving image; several: -m0 -m1 ..")
@options.out_folder
@options.stages
@click.option(
    "-fMask", "fixed_mask", multiple=True, metavar="IMAGE",
    help="Mask on the fixed image's grid; voxels other than 0 count. Several: -fMask0 -fMask1 ..",
)  # fmt: skip
@click.option("-mMask", "moving_mask", multiple=True, metavar="IMAGE", help="Mask on the moving image's grid.")
@click.option("-t0", "initial", metavar="FILE", help="Transform file (elastix, ITK, DICOM) to start from.")
@click.option(
    "-fp", "fixed_landmarks", metavar="FILE",
    help="Landmarks of the fixed image: with -mp, their error is reported, and they guide stages that are told so: "
    "regnet_guided, those with elastix's metric of points.",
)  # fmt: skip
@click.option("-mp", "moving_landmarks", metavar="FILE", help="Landmarks of the moving image.")
@click.option(
    "-fpJudge", "fixed_judge_landmarks", metavar="FILE",
    help="Landmarks of the fixed image that guide nothing: the error that is reported is theirs, with -mpJudge.",
)  # fmt: skip
@click.option("-mpJudge", "moving_judge_landmarks", metavar="FILE", help="The same of the moving image.")
@options.guides
@options.both_ways
@click.option(
    "--strict", "strict", is_flag=True,
    help="End with exit status 4 if the verdict on the result is 'failed'; all is written nevertheless.",
)  # fmt: skip
@options.threads
@options.priority
@options.loglevel
@options.device
@options.elastix_seed
@click.pass_context
def command(context: click.Context, strict: bool, **given: Any) -> None:
    """Register the moving to the fixed image by a chain of elastix and RegNet stages.

    Writes to DIR, for each stage N: TransformParameters.N.txt, result.N.<format>, and for RegNet
    deformationField.N.mha; at the end TransformParameters.N-Composite.h5 (ITK, SimpleITK), errorMap.N.mha (the
    expected error in mm, and the radius that holds in 90 % of the cases), registration.json, registration.png and
    regnet-itk.log. With --both-ways, the same of the way back to DIR/backward.
    """
    verdict = getattr(run(**given), "verdict", None)  # none of what elastix computes as a whole
    if strict and verdict is not None and verdict.word == "failed":
        context.exit(NOT_TO_BE_USED)


def run(
    fixed: str | Sequence[str],
    moving: str | Sequence[str],
    out: Path,
    *,
    stages: tuple[str, ...] = (),
    fixed_mask: str | Sequence[str] | None = None,
    moving_mask: str | Sequence[str] | None = None,
    initial: str | None = None,
    fixed_landmarks: str | None = None,
    moving_landmarks: str | None = None,
    fixed_judge_landmarks: str | None = None,
    moving_judge_landmarks: str | None = None,
    both_ways: bool = False,
    threads: int | None = None,
    priority: str | None = None,
    loglevel: str = "info",
    device: str = "auto",
    seed: int | None = None,
    **guides: str | None,
) -> RegistrationResult | ElastixResult:
    """Do what the command says; the parameters are its options."""
    from regnet_itk.outputs import check_writable
    from regnet_itk.registration import register
    from regnet_itk.registration_inputs import as_several, initial_files
    from regnet_itk.result_files import RUN_FILES
    from regnet_itk.results import BACKWARD_FOLDER, RegistrationResult
    from regnet_itk.run_log import RunLog, heard_by
    from regnet_itk.stages.choice import CHEST_CT_STAGES
    from regnet_itk.transforms.elastix_keys import check_nameable

    check_nameable(out)
    images = [path for given in (fixed, moving, fixed_mask, moving_mask) for path in as_several(given)]
    landmarks = [fixed_landmarks, moving_landmarks, fixed_judge_landmarks, moving_judge_landmarks]
    read = [*images, initial, *landmarks, *guides.values(), *stages]
    for folder in (out, out / BACKWARD_FOLDER):
        RUN_FILES.check(folder, [*read, *initial_files(initial)])
    check_writable(out)
    if both_ways:
        check_writable(out / BACKWARD_FOLDER)
    bound_threads(threads, torch_too=False)  # those of resampling; the stages know their own
    shown = _RunScreen(loglevel, len(stages or CHEST_CT_STAGES))
    log = RunLog(shown)
    with shown, heard_by(log), _python_warnings(loglevel):
        result = register(
            fixed, moving, stages or None,
            fixed_mask=fixed_mask, moving_mask=moving_mask, initial=initial,
            fixed_landmarks=fixed_landmarks, moving_landmarks=moving_landmarks,
            fixed_judge_landmarks=fixed_judge_landmarks, moving_judge_landmarks=moving_judge_landmarks,
            fixed_guides=_guides_of("fixed", guides), moving_guides=_guides_of("moving", guides), both_ways=both_ways,
            threads=threads, seed=seed, device=device, priority=priority, events=shown,
        )  # fmt: skip
        if isinstance(result, RegistrationResult) and result.verdict is not None:
            shown.say(result.verdict.describe())
            log.note(result.verdict.describe())
        log.note(f"total {log.seconds():.1f} s")
        result.write(out, log.lines)
        folding = ""
        if isinstance(result, RegistrationResult):
            folding = f"; det J <= 0 at {result.folding:.3%} of the voxels; see {out / 'registration.png'}"
        shown.say(f"written to {out} in {log.seconds():.1f} s{folding}")
    return result


def _guides_of(role: str, given: dict[str, str | None]) -> Guides[str]:
    """Return what is given for one image; `given` has the options' names: "fixed_rigid"."""
    from regnet_itk.stages.guides import GUIDES, Guides

    return Guides(**{name: given.get(f"{role}_{name}") for name in GUIDES})


class _RunScreen(Screen):
    """Shows the errors that a registration reaches."""

    def __init__(self, loglevel: str, stages: int) -> None:
        super().__init__(loglevel)
        self._stages = stages

    def stages_chosen(self, choice: StageChoice) -> None:
        self.say(choice.describe())

    def landmarks_before(self, error: ErrorSummary) -> None:
        from regnet_itk.stage_report import describe_error

        self.say(f"before: TRE {describe_error(error)}")

    def stage_done(self, number: int, report: StageReport) -> None:
        from regnet_itk.stage_report import describe_error

        way = "backward " if number >= self._stages else ""
        tre = f", TRE {describe_error(report.tre)}" if report.tre else ""
        judgement = f", {report.judgement.describe()}" if report.judgement else ""
        self.say(f"stage {number} {way}{report.name}: {report.seconds:.1f} s{tre}{judgement}")

    def both_ways(self, consistency: InverseConsistency) -> None:
        self.say(f"both ways: {consistency.describe()}")


@contextmanager
def _python_warnings(loglevel: str) -> Iterator[None]:
    """Show the warnings of other libraries only if warnings are wanted at all."""
    with warnings.catch_warnings():
        if loglevel in ("error", "off"):
            warnings.simplefilter("ignore")
        yield
