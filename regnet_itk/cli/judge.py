"""``regnet-itk judge``: how far to trust a transform that anybody found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import NOT_TO_BE_USED, StrictCommand
from regnet_itk.cli.screen import Screen
from regnet_itk.output_files import OutputFiles
from regnet_itk.run_log import RunLog, heard_by

if TYPE_CHECKING:
    from regnet_itk.metrics.measures import ErrorSummary
    from regnet_itk.registration_inputs import LandmarkPair
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.trust.judging import JudgedTransform

RECORD, ERROR_MAP, PICTURE = "judged.json", "errorMap.mha", "judged.png"

_FILES = OutputFiles(r"judged\.(json|png)|errorMap\.mha", RECORD)


@click.command("judge", cls=StrictCommand, context_settings=options.HELP)
@click.option("-f", "fixed", required=True, metavar="IMAGE", help="Fixed image.")
@click.option("-m", "moving", required=True, metavar="IMAGE", help="Moving image, as it was before the registration.")
@click.option(
    "-tp", "transform", required=True, metavar="FILE",
    help="The transform: TransformParameters.N.txt, ITK's .h5 or .tfm, DICOM's, or an image of displacements.",
)  # fmt: skip
@options.out_folder
@click.option("-fMask", "fixed_mask", metavar="IMAGE", help="Judge inside of this mask of the fixed image.")
@click.option("-mMask", "moving_mask", metavar="IMAGE", help="What of the moving image counts.")
@click.option("-fIgnore", "fixed_ignore", metavar="IMAGE", help="Where the fixed image has nothing to compare.")
@click.option("-mIgnore", "moving_ignore", metavar="IMAGE", help="Where the moving image has nothing to compare.")
@click.option("-fp", "fixed_landmarks", metavar="FILE", help="Landmarks of the fixed image; with -mp, their error.")
@click.option("-mp", "moving_landmarks", metavar="FILE", help="Landmarks of the moving image.")
@click.option("--strict", is_flag=True, help="End with exit status 4 if the verdict is 'failed'.")
@options.threads
@options.loglevel
def command(strict: bool, **given: Any) -> int:
    """Judge a transform that elastix, ANTs or any other program found: expected error and verdict.

    Writes to DIR errorMap.mha (the expected error in mm, and the radius that holds in 90 % of the cases), judged.json
    and judged.png.
    """
    failed = judge(**given).verdict.word == "failed"
    return NOT_TO_BE_USED if strict and failed else 0


def judge(
    fixed: str,
    moving: str,
    transform: str,
    out: Path,
    *,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
    fixed_ignore: str | None = None,
    moving_ignore: str | None = None,
    fixed_landmarks: str | None = None,
    moving_landmarks: str | None = None,
    threads: int | None = None,
    loglevel: str = "info",
) -> JudgedTransform:
    """Do what the command says; the parameters are its options."""
    from regnet_itk.outputs import check_writable, staged_folder
    from regnet_itk.registration_inputs import LandmarkPair, check_both_or_none, image_pair, with_guides
    from regnet_itk.stages.guides import Guides
    from regnet_itk.transforms.reading import read_transform
    from regnet_itk.trust.judging import judge_transform

    images = [fixed, moving, fixed_mask, moving_mask, fixed_ignore, moving_ignore]
    _FILES.check(out, [*images, transform, fixed_landmarks, moving_landmarks])
    check_writable(out)
    check_both_or_none(fixed_landmarks, moving_landmarks, "landmarks")
    options.bound_threads(threads)
    log = RunLog(Screen(loglevel))
    with heard_by(log):
        chain = read_transform(transform)
        _FILES.check(out, [link.parameters.source for link in chain.links])
        pair = image_pair(fixed, moving, fixed_mask, moving_mask)
        pair = with_guides(pair, Guides(ignore=fixed_ignore), Guides(ignore=moving_ignore))
        landmarks = LandmarkPair.read(fixed_landmarks, moving_landmarks, pair)
        judged = judge_transform(pair, chain, threads=threads)
        tre = landmarks.error_under(chain)
        with staged_folder(out, _FILES) as stage:
            told = {"transform": transform, "fixed": fixed, "moving": moving, **_summary(judged, pair, tre)}
            (stage / RECORD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            judged.expected_error.write(stage / ERROR_MAP)
            _draw(judged, pair, chain, landmarks, stage / PICTURE)
        _tell(log, judged, tre)
        log.say(f"written to {out} in {log.seconds():.1f} s")
    return judged


def _summary(judged: JudgedTransform, pair: ImagePair, tre: ErrorSummary | None) -> dict[str, Any]:
    from regnet_itk.trust.verdict import region_of

    return {
        "verdict": asdict(judged.verdict),
        "expected_error": judged.expected_error.summary(region_of(pair)),
        **judged.likeness.details(),
        "folding": judged.folding,
        **({} if tre is None else {"tre_mm": asdict(tre)}),
    }


def _draw(judged: JudgedTransform, pair: ImagePair, chain: TransformChain, landmarks: LandmarkPair, path: Path) -> None:
    from regnet_itk.figures.overview import draw_registration
    from regnet_itk.metrics.registered_pair import choose_overview_grid
    from regnet_itk.transforms.resampling import resample_through

    grid = pair.fixed.grid
    warped = resample_through(pair.moving, chain, grid, 1, float(pair.moving.array.min()))
    draw_registration(
        pair.fixed, pair.moving, warped, chain.displacement_on(choose_overview_grid(grid)), path,
        mask=pair.fixed_mask, landmarks=None if landmarks.fixed is None else landmarks.fixed.points,
        expected_error=judged.expected_error.expected_at,
    )  # fmt: skip


def _tell(log: RunLog, judged: JudgedTransform, tre: ErrorSummary | None) -> None:
    from regnet_itk.stage_report import describe_error

    if tre is not None:
        log.say(f"TRE {describe_error(tre)}")
    mean = judged.expected_error.mean
    expected = "nothing can be said anywhere" if mean is None else f"expected error {mean:.2f} mm in the mean"
    log.say(f"{judged.likeness.describe()}, det J <= 0 at {judged.folding:.3%}; {expected}")
    for worst in judged.expected_error.worst_places(3):
        x, y, z = worst["point"]
        log.say(f"  {worst['expected_mm']:.1f} mm at ({x:.1f}, {y:.1f}, {z:.1f})")
    log.say(judged.verdict.describe())
