"""``regnet-itk invert``: the inverse of a transform, as elastix and ITK files, with its residual."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import NOT_INVERTED, StrictCommand
from regnet_itk.cli.options import bound_threads
from regnet_itk.cli.screen import Screen
from regnet_itk.output_files import OutputFiles
from regnet_itk.run_log import RunLog, heard_by
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk

_INVERSE_FILES = OutputFiles(
    r"TransformParameters\.\d+(-part\d+|-Composite)?\.(txt|h5)|deformationField\.\d+(-part\d+)?\.\w+|inverse\.json",
    "inverse.json",
)

if TYPE_CHECKING:
    from regnet_itk.data.grid import Grid
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.transforms.inverse import Residual


@click.command("invert", cls=StrictCommand, context_settings=options.HELP)
@click.option(
    "-tp", "transform", required=True, metavar="FILE", help="TransformParameters.N.txt, or ITK's .h5 or .tfm."
)
@options.out_folder
@click.option(
    "--like", metavar="IMAGE",
    help="Invert on the voxels of this image: the moving image is the natural choice. By default, the fixed image's "
    "voxels over all that the transform maps it to.",
)  # fmt: skip
@click.option("--fixed", metavar="IMAGE", help="The fixed image, if the transform file does not say its grid (ITK's).")
@options.threads
@options.loglevel
def command(**given: Any) -> int:
    """Invert a transform: the result maps points of the moving image to the fixed image.

    Writes to DIR TransformParameters.N.txt (with deformationField.N.mha), TransformParameters.N-Composite.h5 and
    inverse.json, and says how exact it is. A chain of matrices is inverted exactly. The exit status is 3 if a part of
    the transform has no inverse.
    """
    return invert(**given)


def invert(
    transform: str,
    out: Path,
    *,
    like: str | None = None,
    fixed: str | None = None,
    threads: int | None = None,
    loglevel: str = "info",
) -> int:
    """Do what the command says, and return its exit status; the parameters are its options."""
    from regnet_itk.errors import OutputError
    from regnet_itk.outputs import check_writable
    from regnet_itk.transforms.elastix_keys import check_nameable

    check_nameable(out)
    _INVERSE_FILES.check(out, [transform, like, fixed])
    check_writable(out)
    if out.resolve() == Path(transform).resolve().parent:
        raise OutputError(f"'{out}' holds the transform itself, whose files have the same names; give another folder")
    bound_threads(threads)
    log = RunLog(Screen(loglevel))
    with heard_by(log):
        return _invert(transform, out, like, fixed, log)


def _invert(transform: str, out: Path, like: str | None, fixed: str | None, log: RunLog) -> int:
    from regnet_itk.data.image_files import read_grid
    from regnet_itk.outputs import staged_folder
    from regnet_itk.transforms.elastix_reading import read_chain
    from regnet_itk.transforms.inverse import FAILED_SHARE, invert_chain, measure_inverse_residual

    chain = read_chain(transform)
    _INVERSE_FILES.check(out, [link.parameters.source for link in chain.links])
    wanted = read_grid(like, "--like image") if like else None
    fixed_grid = _fixed_grid(chain, read_grid(fixed, "fixed image") if fixed else None, transform)
    inverse = invert_chain(chain, fixed_grid, wanted)
    residual = measure_inverse_residual(chain, inverse, fixed_grid, grid=wanted)
    failed = residual.failed > FAILED_SHARE
    with staged_folder(out, _INVERSE_FILES) as stage:
        _write(_with_settings(inverse, chain, wanted), stage, out.resolve())
        report = {"transform": transform, "exact": chain.as_matrix() is not None, "failed": failed,
                  "residual_mm": asdict(residual)}  # fmt: skip
        (stage / "inverse.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _tell(log, residual)
    log.say(f"written to {out} in {log.seconds():.1f} s")
    if failed:
        log.warn(f"{residual.failed:.2%} of the points have no inverse to within half a voxel: do not rely on it there")
    return NOT_INVERTED if failed else 0


def _fixed_grid(chain: TransformChain, given: Grid | None, source: str) -> Grid:
    """Return the grid of the fixed image: given, said by the file, or that of the displacement field in it."""
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.errors import TransformError
    from regnet_itk.transforms.resampling_keys import read_resampling_grid

    if given is not None:
        return given
    said = read_resampling_grid(chain.links[-1].parameters) if chain.links else None
    if said is not None:
        return said
    if chain.as_matrix() is not None:  # holds everywhere; the residual is measured around the origin
        return Grid((100, 100, 100), (2.0, 2.0, 2.0), (-100.0, -100.0, -100.0))
    first = chain.applied()[0]
    if isinstance(first, DisplacementField):
        return first.grid
    raise TransformError(f"'{source}' does not say where the fixed image lies; give it: --fixed IMAGE")


def _with_settings(inverse: TransformChain, chain: TransformChain, wanted: Grid | None) -> TransformChain:
    """Return the inverse with what its files say of resampling: as the transform's files, on its own voxels."""
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.transforms.inverse import image_grid
    from regnet_itk.transforms.resampling_keys import make_resampling_parameters, read_resampling_grid

    said = chain.links[-1].parameters if chain.links else ParameterMap({})
    last, fixed_grid = inverse.links[-1].transform, read_resampling_grid(said)
    grid = wanted or (last.grid if isinstance(last, DisplacementField) else None)
    grid = grid or (image_grid(chain, fixed_grid) if fixed_grid is not None else None)
    if grid is None:  # a matrix of ITK's, and nobody says where its images lie
        return inverse
    usual = make_resampling_parameters(grid, default=0.0, pixel_type="float")
    of_grid = {key: usual[key] for key in ("Size", "Index", "Spacing", "Origin", "Direction", "UseDirectionCosines")}
    settings = ParameterMap({**usual, **said.values, **of_grid})
    return TransformChain(tuple(replace(link, parameters=settings) for link in inverse.links))


def _write(inverse: TransformChain, stage: Path, final: Path) -> None:
    written = write_elastix(inverse, stage, final)
    write_itk(inverse, stage / f"{written[-1].stem}-Composite.h5")


def _tell(log: RunLog, residual: Residual) -> None:
    x, y, z = residual.where
    log.say(
        f"residual |T(T^-1(y)) - y| at {residual.count} points of the fixed image: mean {residual.mean:.2g} mm, "
        f"95 % {residual.p95:.2g} mm, max {residual.max:.2g} mm at ({x:.1f}, {y:.1f}, {z:.1f})"
    )
    if residual.folding:
        log.warn(f"the transform folds (det J <= 0) at {residual.folding:.2%} of them: it has no inverse there")
