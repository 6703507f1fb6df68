"""What ``regnet-itk transform`` does with DICOM: series, doses and structures become those of the fixed image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from regnet_itk.dicom.files import DICOM_SUFFIX, DOSE, STRUCTURES, check_same_patient, sop_class
from regnet_itk.dicom.series import Series, check_fixed_grid, check_in_moving_frame, read_both_series, read_series
from regnet_itk.errors import DicomError, OutputError

if TYPE_CHECKING:
    from pydicom import Dataset

    from regnet_itk.cli.transform_request import Request
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.radiotherapy.structure_mapping import MappedStructure
    from regnet_itk.radiotherapy.structures import StructureSet
    from regnet_itk.run_log import RunLog
    from regnet_itk.transforms.chain import TransformChain
    from regnet_itk.transforms.warping import Order, WarpSettings

Kind = Literal["series", "dose", "structures"]


def check_no_series(out: Path, inputs: Iterable[str | None]) -> None:
    """Refuse to write into the folder of a series that is read, where new slices would be mixed with its own.

    Raises
    ------
    OutputError
    """
    for given in inputs:
        if given and os.path.isdir(given) and os.path.realpath(given) == os.path.realpath(out):
            raise OutputError(f"'{given}' holds a series that is read, and would get others; give another folder")


@dataclass(frozen=True)
class GivenSeries:
    """The series that the command line names: of the fixed image and, perhaps, of the moving one."""

    fixed: Series
    moving: Series | None

    def read_chain(self, path: str) -> TransformChain:
        """Read the transform; one of DICOM's has to be of these series."""
        from regnet_itk.transforms.dicom_registration import read_registration
        from regnet_itk.transforms.elastix_reading import read_chain

        if Path(path).suffix.lower() != DICOM_SUFFIX:
            return read_chain(path)
        moving = self.moving.frame_of_reference if self.moving is not None else None
        return read_registration(path, self.fixed.frame_of_reference, moving)


def read_given_series(asked: Request) -> GivenSeries | None:
    """Read the headers of the series that the command line names; None if it names none."""
    if asked.fixed_series is None:
        return None
    if asked.moving_series is None:
        return GivenSeries(read_series(asked.fixed_series, "fixed series"), None)
    return GivenSeries(*read_both_series(asked.fixed_series, asked.moving_series))


def find_dicom_kinds(paths: tuple[str, ...], series: GivenSeries | None) -> list[Kind | None]:
    """Say what the inputs are that become DICOM again; None for images that are written in another format.

    Raises
    ------
    DicomError
        If one is a dose or a structure set, and the fixed image's series is not given; or if it is, and none is DICOM.
    """
    kinds = [_dicom_kind(path, series) for path in paths]
    if series is not None and not any(kinds):
        raise DicomError(
            f"'{paths[0]}' is no DICOM series, dose or structure set, and gives none; leave `fixed_series` away"
        )
    return kinds


def _dicom_kind(path: str, series: GivenSeries | None) -> Kind | None:
    if Path(path).is_dir():
        return "series" if series is not None else None
    kinds: dict[str, Kind] = {DOSE: "dose", STRUCTURES: "structures"}
    kind = kinds.get(sop_class(path))
    if kind is not None and series is None:
        raise DicomError(
            f"'{path}' holds a DICOM {kind.rstrip('s')}, and the result has to refer to the fixed image's series; give "
            "its folder with `fixed_series`"
        )
    return kind


@dataclass(frozen=True)
class DicomWriter:
    """Warps what is of the moving scan, and writes it into the folder `stage` as part of the fixed one's study."""

    asked: Request
    series: GivenSeries
    chain: TransformChain
    settings: WarpSettings
    grid: Grid
    stage: Path
    log: RunLog

    def __post_init__(self) -> None:
        check_fixed_grid(self.grid, self.series.fixed)

    def write(self, kind: Kind, path: str, name: str) -> Grid:
        """Warp an input and write it.

        Returns
        -------
        Grid
            That of the input; of structures, the one that their contours are drawn on.
        """
        return {"series": self._series, "dose": self._dose, "structures": self._structures}[kind](path, name)

    def _series(self, path: str, name: str) -> Grid:
        from regnet_itk.data.image import Image
        from regnet_itk.data.image_files import read_image
        from regnet_itk.dicom.image_series import check_writable_series, write_image_series
        from regnet_itk.transforms.warping import warp_image, warp_labels

        moving = read_series(path, "input image")
        self._check(moving.first, moving.frame_of_reference, moving.what)
        check_writable_series(moving)
        image = read_image(path, "input image")
        if self.asked.label:
            warped = warp_labels(image, self.chain, self.grid, linear=self.asked.label == "linear")
        else:
            warped = warp_image(image, self.chain, self.grid, order=self.settings.order, default=self.settings.default)
            if image.array.dtype.kind in "iu":
                warped = Image(np.rint(warped.array), self.grid)
        files = write_image_series(warped, self.stage, name, self.series.fixed, moving)
        self.log.note(f"{len(files)} slices {files[0].name} .. written")
        return image.grid

    def _dose(self, path: str, name: str) -> Grid:
        from regnet_itk.radiotherapy.dose import dose_grid, read_dose, write_dose
        from regnet_itk.radiotherapy.dose_mapping import map_dose, map_energy

        self._refuse_image_options(path)
        dose = read_dose(path)
        self._check(dose.header, dose.frame_of_reference, dose.what)
        grid = self.grid if self.asked.like else dose_grid(self.grid, dose.image.grid)
        if self.asked.dose == "energy":
            mapped, how = map_energy(dose, self.chain, grid, *self._scans()), "energy over mass"
        else:
            order: Order = "linear" if self.asked.order is None else self.asked.order
            mapped, how = map_dose(dose, self.chain, grid, order), "value of each point"
        write_dose(mapped, self.stage / f"{name}.dcm", dose, self.series.fixed, how=how, rigid=self._is_rigid())
        self.log.say(
            f"dose: up to {dose.image.array.max():.2f} Gy before, {mapped.array.max():.2f} Gy after, by {how}; voxels "
            f"of {' x '.join(f'{s:g}' for s in grid.spacing)} mm"
        )
        return dose.image.grid

    def _scans(self) -> tuple[Image, Image]:
        from regnet_itk.data.image_files import read_image

        fixed, moving = self.series.fixed, self.series.moving
        if moving is None or self.asked.moving_series is None or self.asked.fixed_series is None:
            raise DicomError("energy needs the mass in both scans; give the moving one with `moving_series`")
        for series in (fixed, moving):
            if series.modality != "CT":
                raise DicomError(
                    f"energy needs the mass that CTs show, and {series.what} is of the kind {series.modality}"
                )
        of_fixed = read_image(self.asked.fixed_series, "fixed series")
        return of_fixed, read_image(self.asked.moving_series, "moving series")

    def _is_rigid(self) -> bool:
        matrix = self.chain.as_matrix()
        return matrix is not None and matrix.is_rigid

    def _structures(self, path: str, name: str) -> Grid:
        from regnet_itk.data.image_files import write_image
        from regnet_itk.radiotherapy.structure_mapping import StructureMapper
        from regnet_itk.radiotherapy.structures import read_structures, write_structures

        self._refuse_image_options(path, but_label=True)
        given = read_structures(path)
        self._check(given.header, given.frame_of_reference, given.what)
        self._check_drawn_on(given)
        moving = self.series.moving
        mapper = StructureMapper(self.chain, self.grid, None if moving is None else moving.grid().spacing[2])
        rows = []
        contours = {}
        for structure in given.structures:
            mapped = mapper.map(structure)
            contours[structure.number] = mapped.structure.contours
            rows.append(_row(mapped))
            self.log.say(_line(mapped))
            if self.asked.label and mapped.mask is not None:
                rows[-1]["mask"] = f"{name}.mask-{structure.number:02}-{_plain(structure.name)}.mha"
                write_image(mapped.mask, self.stage / str(rows[-1]["mask"]))
        write_structures(contours, self.stage / f"{name}.dcm", given, self.series.fixed, 0.1 * self.grid.spacing[2])
        text = json.dumps({"structures": rows}, indent=2, ensure_ascii=False)
        (self.stage / f"{name}.structures.json").write_text(text + "\n", encoding="utf-8")
        return moving.grid() if moving is not None else self.grid

    def _check(self, header: Dataset, frame: str, what: str) -> None:
        check_same_patient(header, what, self.series.fixed.first, self.series.fixed.what)
        check_in_moving_frame(frame, what, self.series.fixed, self.series.moving)

    def _check_drawn_on(self, given: StructureSet) -> None:
        """Refuse structures that were drawn on the fixed series, where both scans share a frame of reference."""
        fixed, moving = (
            None if s is None else str(s.first.SeriesInstanceUID) for s in (self.series.fixed, self.series.moving)
        )
        if fixed in given.series() and moving not in given.series():
            raise DicomError(f"{given.what} were drawn on {self.series.fixed.what}; give those of the moving image")

    def _refuse_image_options(self, path: str, but_label: bool = False) -> None:
        unused = self.asked.order if but_label else self.asked.label
        if self.asked.default is not None or unused is not None:
            raise DicomError(f"'{path}' is no image: leave `default`, `order` and `label` away, or give it by itself")


def _row(mapped: MappedStructure) -> dict[str, object]:
    structure = mapped.structure
    return {
        "number": structure.number, "name": structure.name, "colour": structure.colour,
        "contours": len(structure.contours),
        "volume_before_cm3": mapped.volume_before, "volume_after_cm3": mapped.volume_after,
    }  # fmt: skip


def _line(mapped: MappedStructure) -> str:
    name, count = mapped.structure.name, len(mapped.structure.contours)
    before, after = mapped.volume_before, mapped.volume_after
    if before is None or after is None:
        return f"structure '{name}': {count} points and lines"
    change = f" ({after / before - 1:+.1%})" if before > 0 else ""
    return f"structure '{name}': {before:.2f} cm3 before, {after:.2f} after{change}"


def _plain(name: str) -> str:
    """Return what of a name any file system takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40] or "structure"
