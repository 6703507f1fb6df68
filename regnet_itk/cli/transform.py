"""``regnet-itk transform``: transformix's command line, for every transform that regnet-itk can read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import NOT_INVERTED, StrictCommand
from regnet_itk.cli.options import bound_threads
from regnet_itk.cli.screen import Screen
from regnet_itk.cli.transform_request import Request
from regnet_itk.data.suffixes import RESULT_FORMATS
from regnet_itk.output_files import OutputFiles
from regnet_itk.run_log import RunLog, heard_by

if TYPE_CHECKING:
    from regnet_itk.cli.transform_dicom import DicomWriter, GivenSeries
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.transforms.point_mapping import MappedPoints
    from regnet_itk.transforms.warping import WarpSettings

_NAMED = 10  # points that a message lists
_LOG = "transformix.log"
EXPECTED_ERRORS = "expectedErrors.csv"
"""How far off each of the mapped points may be."""

_DICOM_RESULTS = r"\d{4,}\.dcm|structures\.json|mask-\d+-[^/]*\.mha"
"""What ends the names of a series' slices, and of what is written of structures beside their contours."""
_FORMATS = "|".join(map(re.escape, (*RESULT_FORMATS, "raw", "zraw", "raw.gz")))


@click.command("transform", cls=StrictCommand, context_settings=options.HELP)
@click.option(
    "-tp", "transform", required=True, metavar="FILE",
    help="Transform of a finished registration: TransformParameters.N.txt, ITK's .h5 or .tfm, or DICOM's .dcm.",
)  # fmt: skip
@options.out_folder
@click.option(
    "-in", "images", multiple=True, metavar="IMAGE",
    help="Image to warp to the fixed image, or DICOM dose or structures; may repeat.",
)  # fmt: skip
@click.option(
    "-def", "points", metavar="FILE|all",
    help="Points to map (.txt .vtk .csv .fcsv .mrk.json); 'all' writes the displacement field.",
)  # fmt: skip
@click.option("-jac", "determinant", type=click.Choice(["all"]), help="Write the Jacobian determinant: -jac all.")
@click.option("-jacmat", "matrices", type=click.Choice(["all"]), help="Write the Jacobian matrices: -jacmat all.")
@click.option(
    "--label", is_flag=False, flag_value="nearest", type=click.Choice(["nearest", "linear"]),
    help="The images are segmentations: take the nearest voxel's label, or with 'linear' the label with the greatest "
    "interpolated membership. Keeps the pixel type; 0 outside. Of DICOM structures, masks are written too.",
)  # fmt: skip
@click.option("--like", metavar="IMAGE", help="Write on the grid of this image, not of the fixed image.")
@click.option(
    "--moving-to-fixed",
    "back",
    is_flag=True,
    help="Map the points of -def from the moving image back; voxel indices are those of -in.",
)
@click.option("--mask", metavar="IMAGE", help="Mask of the fixed image for the summary of the Jacobian.")
@click.option("--order", type=click.IntRange(0, 5), help="Of the interpolation, in place of the transform file's.")
@options.fixed_series
@options.moving_series
@click.option(
    "--dose", type=click.Choice(["value", "energy"]), default="value", show_default=True,
    help="How a DICOM dose is carried: each piece of tissue keeps its dose, or its energy (needs both series, CTs).",
)  # fmt: skip
@click.option("--default", type=float, metavar="VALUE", help="Outside the image, in place of DefaultPixelValue.")
@options.threads
@options.loglevel
def command(**given: Any) -> int:
    """Apply a transform to images, segmentations or points, and write its Jacobian, as transformix does.

    Writes to DIR: result.<format> (or result.<name of the input>.<format> for several images), outputpoints.txt (and
    the points in the format of their file), deformationField, spatialJacobian (.json: a summary), fullSpatialJacobian,
    and transformix.log. With --fixed-series a DICOM series, dose or structure set becomes one of the fixed
    image's patient and frame of reference.
    Points go from the fixed to the moving image, images the other way. The exit status is 3 if a point has no inverse.
    """
    return transform(Request(**given))


def transform(asked: Request) -> int:
    """Do what the command says, and return its exit status."""
    from regnet_itk.cli.transform_dicom import check_no_series
    from regnet_itk.outputs import check_writable

    check_writable(asked.out)
    points = None if asked.points == "all" else asked.points
    read = [asked.transform, *asked.images, points, asked.like, asked.mask, asked.fixed_series, asked.moving_series]
    _files(asked).check(asked.out, read)
    check_no_series(asked.out, read)
    bound_threads(asked.threads)
    log = RunLog(Screen(asked.loglevel))
    with heard_by(log):
        return _transform(asked, log)


def _transform(asked: Request, log: RunLog) -> int:
    from regnet_itk.cli.transform_dicom import read_given_series
    from regnet_itk.data.image_files import read_grid
    from regnet_itk.outputs import staged_folder
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.transforms.elastix_reading import find_beyond_reading, list_transform_maps, read_chain
    from regnet_itk.transforms.warping import WarpSettings

    why = find_beyond_reading(asked.transform)
    if why is not None:
        from regnet_itk.cli.handed_on import hand_on

        _files(asked).check(
            asked.out, [values.source for values in list_transform_maps(asked.transform, numbers=False)]
        )
        with staged_folder(asked.out, _files(asked)) as stage:
            hand_on(asked, why, _result_names(asked.images), stage, log)
            (stage / _LOG).write_text(log.text(), encoding="utf-8")
        log.say(f"written to {asked.out} in {log.seconds():.1f} s, by transformix")
        return 0
    series = read_given_series(asked)
    chain = read_chain(asked.transform) if series is None else series.read_chain(asked.transform)
    _files(asked).check(asked.out, [link.parameters.source for link in chain.links])
    settings = WarpSettings.of(chain.links[-1].parameters if chain.links else ParameterMap({}))
    like = read_grid(asked.like, "--like image") if asked.like else None
    fixed_grid = settings.grid or like or (series.fixed.grid() if series is not None else None)
    settings = replace(
        settings,
        grid=like or fixed_grid,
        order=settings.order if asked.order is None else asked.order,
        default=settings.default if asked.default is None else asked.default,
    )
    log.note(f"transform {asked.transform}: {len(chain.links)} part(s)")
    with staged_folder(asked.out, _files(asked)) as stage:
        work = _Work(asked, chain, settings, fixed_grid, stage, log, series)
        status = work.run()
        (stage / _LOG).write_text(log.text(), encoding="utf-8")
    log.say(f"written to {asked.out} in {log.seconds():.1f} s")
    return status


@dataclass(frozen=True)
class _Work:
    """The parts of one call, which write into the folder `stage`."""

    asked: Request
    chain: TransformChain
    settings: WarpSettings
    fixed_grid: Grid | None
    stage: Path
    log: RunLog
    series: GivenSeries | None = None

    def run(self) -> int:
        images = self._warp_images()
        status = 0
        if self.asked.points == "all":
            self._displacement()
        elif self.asked.points:
            status = self._map_points(images[0] if images else None)
        if self.asked.determinant:
            self._determinant()
        if self.asked.matrices:
            self._matrices()
        return status

    def _grid(self) -> Grid:
        from regnet_itk.errors import TransformError

        if self.settings.grid is None:
            raise TransformError(
                f"'{self.asked.transform}' does not say on which voxels to write; give the fixed image: --like IMAGE"
            )
        return self.settings.grid

    def _warp_images(self) -> list[Grid]:
        """Warp the images, and return their grids."""
        from regnet_itk.cli.transform_dicom import find_dicom_kinds
        from regnet_itk.data.image_files import read_image

        grids = []
        kinds = find_dicom_kinds(self.asked.images, self.series)
        for path, name, kind in zip(self.asked.images, _result_names(self.asked.images), kinds, strict=True):
            if kind is not None:
                grids.append(self._dicom_writer().write(kind, path, name))
                continue
            image = read_image(path, "input image")
            self._write(self._warped(image, path).to_sitk, f"{name}.{self.settings.format}")
            grids.append(image.grid)
        return grids

    def _dicom_writer(self) -> DicomWriter:
        from regnet_itk.cli.transform_dicom import DicomWriter

        assert self.series is not None
        return DicomWriter(self.asked, self.series, self.chain, self.settings, self._grid(), self.stage, self.log)

    def _warped(self, image: Image, path: str) -> Image:
        from regnet_itk.data.pixel_types import pixel_type_of
        from regnet_itk.errors import ImageError
        from regnet_itk.transforms.warping import warp_image, warp_labels

        try:
            if self.asked.label:
                return warp_labels(image, self.chain, self._grid(), linear=self.asked.label == "linear")
            return warp_image(
                image, self.chain, self._grid(), order=self.settings.order, default=self.settings.default,
                pixel_type=self.settings.pixel_type or pixel_type_of(image.array),
            )  # fmt: skip
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None

    def _displacement(self) -> None:
        self._write(self.chain.displacement_on(self._grid()).to_sitk, f"deformationField.{self.settings.format}")

    def _determinant(self) -> None:
        from regnet_itk.data.image_files import read_image
        from regnet_itk.transforms.jacobian import jacobian_determinant_on, summarise_folding

        determinants = jacobian_determinant_on(self.chain, self._grid())
        summary = summarise_folding(determinants, read_image(self.asked.mask, "mask") if self.asked.mask else None)
        self._write(determinants.to_sitk, f"spatialJacobian.{self.settings.format}")
        values = {key: None if math.isnan(value) else value for key, value in asdict(summary).items()}
        (self.stage / "spatialJacobian.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        self.log.say(
            f"det J <= 0 at {summary.share_not_positive:.3%} of {summary.voxels} voxels"
            f"{' in the mask' if self.asked.mask else ''}; from {summary.min:.3f} to {summary.max:.3f}, standard "
            f"deviation of log det J {summary.std_log:.4f}"
        )

    def _matrices(self) -> None:
        from regnet_itk.data.image import place
        from regnet_itk.transforms.jacobian import jacobian_matrices_on

        grid = self._grid()
        found = jacobian_matrices_on(self.chain, grid).reshape(*grid.shape, 9)

        def image() -> Any:
            import SimpleITK as sitk

            return place(sitk.GetImageFromArray(found, isVector=True), grid)

        self._write(image, f"fullSpatialJacobian.{self.settings.format}")

    def _write(self, image: Callable[[], Any], name: str) -> None:
        """Write a SimpleITK image."""
        import SimpleITK as sitk

        from regnet_itk.outputs import write_whole

        written = image()
        write_whole(
            self.stage / name, lambda part: sitk.WriteImage(written, str(part), useCompression=self.settings.compress)
        )
        self.log.note(f"{name} written")

    def _map_points(self, moving: Grid | None) -> int:
        from regnet_itk.data.landmarks import read_landmarks, write_landmarks
        from regnet_itk.transforms.point_mapping import map_landmarks, output_points_text

        path, back = str(self.asked.points), self.asked.back
        given = read_landmarks(path, moving if back else self.fixed_grid)
        mapped = map_landmarks(self.chain, given, back, self.fixed_grid)
        (self.stage / "outputpoints.txt").write_text(
            output_points_text(mapped, self.fixed_grid, moving), encoding="utf-8"
        )
        suffix = ".mrk.json" if path.lower().endswith(".json") else Path(path).suffix.lower()
        if suffix not in (".txt", ".pts"):
            write_landmarks(mapped.landmarks(), self.stage / f"outputpoints{suffix}")
        self._expected_errors(mapped)
        self._warn_of_outside(mapped, back)
        return self._tell_of_inverse(mapped) if back else 0

    def _expected_errors(self, mapped: MappedPoints) -> None:
        """Write how far off each point may be, if the run has said how far its transform may be."""
        import numpy as np

        from regnet_itk.trust.error_map import find_error_map_of, read_error_map

        path = find_error_map_of(self.asked.transform)
        if path is None:
            return
        in_fixed = mapped.mapped if self.asked.back else mapped.given.points
        found = read_error_map(path).at(in_fixed)
        rows = ["point,expected_error_mm,radius_90_mm"]
        rows += [f"{mapped.name(i)},{e:.2f},{r:.2f}" for i, (e, r) in enumerate(found.tolist())]
        (self.stage / EXPECTED_ERRORS).write_text("\n".join(rows) + "\n", encoding="utf-8")
        known = np.isfinite(found[:, 0])
        if known.any():
            self.log.say(
                f"expected error of the points: mean {found[known, 0].mean():.2g} mm, worst "
                f"{found[known, 0].max():.2g} mm; see {EXPECTED_ERRORS}"
            )

    def _warn_of_outside(self, mapped: MappedPoints, back: bool) -> None:
        """Warn of points that are not in the fixed image, where a transform was not estimated."""
        import numpy as np

        if self.fixed_grid is None:
            return
        outside = ~self.fixed_grid.contains(mapped.mapped if back else mapped.given.points)
        numbers = np.setdiff1d(np.flatnonzero(outside), mapped.failed)
        if len(numbers):
            self.log.warn(
                f"{len(numbers)} of {len(outside)} points lie outside the fixed image "
                f"({_listed(map(mapped.name, numbers.tolist()))}), where nothing was registered; points are in mm, LPS"
            )

    def _tell_of_inverse(self, mapped: MappedPoints) -> int:
        assert mapped.residual is not None
        self.log.say(
            f"{len(mapped.given)} points mapped moving to fixed; residual |T(x) - y| "
            f"mean {mapped.residual.mean():.2g} mm, max {mapped.residual.max():.2g} mm"
        )
        if not len(mapped.failed):
            return 0
        self.log.warn(
            f"{len(mapped.failed)} of {len(mapped.given)} points have no inverse, are nan in outputpoints.txt and "
            "left out of other files: "
            + _listed(f"{mapped.name(i)} (residual {mapped.residual[i]:.2g} mm)" for i in mapped.failed)
        )
        return NOT_INVERTED


def _files(asked: Request) -> OutputFiles:
    """Return what a call writes; of an earlier one only what it writes anew, in another format perhaps, is removed."""
    names = [f"{re.escape(name)}\\.({_FORMATS}|{_DICOM_RESULTS})" for name in _result_names(asked.images)]
    kinds = {"deformationField": asked.points == "all", "spatialJacobian": asked.determinant,
             "fullSpatialJacobian": asked.matrices}  # fmt: skip
    names += [f"{name}\\.({_FORMATS}|json)" for name, wanted in kinds.items() if wanted]
    if asked.points and asked.points != "all":
        names += [r"outputpoints\..+", re.escape(EXPECTED_ERRORS)]
    return OutputFiles("|".join([*names, re.escape(_LOG)]), _LOG, exclusive=False)


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (" .." if len(names) > _NAMED else "")


def _result_names(paths: tuple[str, ...]) -> list[str]:
    """Return the names of the results without suffix: one is ``result``, several are named after their inputs."""
    from regnet_itk.transforms.warping import stem

    if len(paths) == 1:
        return ["result"]
    names: list[str] = []
    for path in paths:
        name, number = f"result.{stem(path)}", 2
        while name in names:
            name, number = f"result.{stem(path)}-{number}", number + 1
        names.append(name)
    return names
