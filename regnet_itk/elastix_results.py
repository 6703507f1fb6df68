"""Registrations that elastix computes as a whole: of two or four dimensions, or with transforms known to it alone."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_itk.data.image import check_values
from regnet_itk.data.image_nd import ImageND
from regnet_itk.data.landmarks import Landmarks, elastix_points_text, points_text, read_landmarks, read_points_text
from regnet_itk.data.suffixes import PARAMETER_SUFFIXES
from regnet_itk.elastix.chains import ChainInputs, ElastixFiles, run_chain
from regnet_itk.elastix.components import COMPONENTS
from regnet_itk.errors import ImageError, ParameterError, RegistrationError, TransformError
from regnet_itk.events import Progress
from regnet_itk.outputs import staged_folder
from regnet_itk.parameters import ParameterMap
from regnet_itk.registration_events import RegistrationEvents
from regnet_itk.registration_inputs import Images
from regnet_itk.result_files import RECORD, RUN_FILES, write_stage_files
from regnet_itk.stage_report import StageReport
from regnet_itk.stages.base import RunOptions, Stage
from regnet_itk.stages.elastix import DIMENSION_KEYS, ElastixStage, ignores_direction
from regnet_itk.stages.elastix_settings import ElastixSettings
from regnet_itk.stages.keys import declared_keys
from regnet_itk.stages.planning import check_output_keys
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import find_beyond_reading, list_transform_maps
from regnet_itk.transforms.registry import find_elastix_type
from regnet_itk.transforms.resampling_keys import result_pixel_type
from regnet_itk.transforms.transformix import check_sizes
from regnet_itk.versions import package_versions

NEEDS_LABELS = "MultiBSplineTransformWithNormal"
"""The transform that elastix makes with a flag of its program alone."""


@dataclass(frozen=True, eq=False)
class ElastixResult:
    """What :func:`regnet_itk.register` returns where elastix computes the chain as a whole.

    That is so for images of two or four dimensions, and for transforms that this package does not evaluate itself, such
    as "WeightedCombinationTransform". elastix's files are the result; there is no displacement field, no det J, no
    landmark error and no picture.

    .. versionadded:: 0.2

    Parameters
    ----------
    images : Images
        What was registered.
    stages : tuple of StageReport
    files : ElastixFiles
        What elastix wrote.
    settings : mapping
        Threads, seed, priority, as asked for.
    inputs : mapping
        Where the images, masks and landmarks lie that were given as files.
    """

    images: Images
    stages: tuple[StageReport, ...]
    files: ElastixFiles
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ElastixResult({self.images.fixed[0]!r}, {', '.join(map(repr, self.stages))})"

    @property
    def warped(self) -> ImageND:
        """The moving image on the fixed one's voxels, as elastix made it.

        Raises
        ------
        RegistrationError
            If the map of the last stage says ``(WriteResultImage "false")``.
        """
        found = self.stages[-1].warped
        if isinstance(found, ImageND):
            return found
        source = self.stages[-1].parameters.source
        raise RegistrationError(f'{source}: there is no result image, as (WriteResultImage "false") asks for')

    def transform_maps(self, folder: str | Path) -> list[ParameterMap]:
        """Return the transform of each stage as elastix wrote it, for files that lie in `folder`."""
        return [self.files.transform(number, Path(folder).resolve()) for number in range(len(self.stages))]

    def summary(self) -> dict[str, Any]:
        """Return the contents of ``registration.json``."""
        return {
            "versions": {"python": platform.python_version(), **package_versions()},
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
            "computed_by": "elastix as a whole",
            "fixed": _describe(self.images.fixed[0]),
            "moving": _describe(self.images.moving[0]),
            "stages": [report.summary(number) for number, report in enumerate(self.stages)],
        }

    def write(self, folder: str | Path, log: list[str] | None = None) -> None:
        """Write elastix's files, ``registration.json`` and ``regnet-itk.log`` into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or Path
            Created if needed.
        log : list of str, optional
            The lines of the log.

        Raises
        ------
        OutputError
            If it cannot be written, holds one of the images that were registered under the name of a result, or holds
            the files of another program.
        """
        final = Path(folder).resolve()
        RUN_FILES.check(final, self.inputs.values())
        with ExitStack() as stack:
            stage = stack.enter_context(staged_folder(final, RUN_FILES))
            self.write_stages(stage, final)
            (stage / RECORD).write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
            (stage / "regnet-itk.log").write_text("".join(line + "\n" for line in log or []), encoding="utf-8")

    def write_stages(self, folder: Path, final_folder: Path | None = None) -> None:
        """Write what elastix writes for each stage: transform, result image, tables of the iterations.

        Parameters
        ----------
        folder : Path
            Where to write; it must exist.
        final_folder : Path, optional
            Where the files will lie in the end, if `folder` is a temporary one.
        """
        self.write_transforms(folder, final_folder)
        for number, report in enumerate(self.stages):
            write_stage_files(number, report, folder)

    def write_transforms(self, folder: Path, final_folder: Path | None = None) -> list[Path]:
        """Write the transform files, and return one for each stage; see `write_stages`."""
        for name, content in self.files.lying_in((final_folder or folder).resolve()).items():
            (folder / name).write_bytes(content)
        return [folder / f"TransformParameters.{number}.txt" for number in range(len(self.stages))]


def _describe(image: ImageND) -> dict[str, Any]:
    return {"size": image.size, "spacing": image.spacing, "pixel_type": str(image.array.dtype)}


def why_whole(stages: Sequence[Stage], images: Images, initial: str | Path | TransformChain | None) -> str | None:
    """Say why elastix has to compute a chain as a whole; None if it goes stage by stage, with all that belongs to it.

    Raises
    ------
    ImageError
        If the images are not 3D, and a stage is not elastix's.
    """
    alone = all(isinstance(stage, ElastixStage) for stage in stages)
    if images.dimension != 3:
        for stage in stages:
            if not isinstance(stage, ElastixStage):
                raise ImageError(
                    f"the images have {images.dimension} dimensions, and {stage.name} ({stage.parameters.source}) "
                    "needs 3D images; only elastix's stages take others"
                )
        return f"images of {images.dimension} dimensions"
    if not alone:
        return None
    for stage in stages:
        name = stage.parameters.get_str("Transform", "")
        kind = find_elastix_type(name)
        if name in COMPONENTS and not (kind and kind.in_stages):
            return f"a {name}"
    if initial is not None and not isinstance(initial, TransformChain):
        return find_beyond_reading(initial)
    return None


def register_whole(
    stages: Sequence[Stage],
    images: Images,
    initial: str | Path | TransformChain | None,
    *,
    landmarks: tuple[Any, Any],
    inputs: Mapping[str, str],
    options: RunOptions,
    events: RegistrationEvents,
) -> ElastixResult:
    """Let elastix compute a chain as a whole; see :func:`regnet_itk.register`.

    Raises
    ------
    ImageError, PointsError, ParameterError, TransformError, RegistrationError
    """
    _check([stage.parameters for stage in stages], images)
    maps = [_without_own_keys(stage.parameters, events) for stage in stages]
    for values in maps:
        if ignores_direction(values, images.fixed[0].direction):
            events.log.warning(
                '%s: (UseDirectionCosines "false") does not keep elastix\'s library from using the axes of the images',
                values.source,
            )
    start = _initial_file(initial, images.dimension)
    points = _points(landmarks[0], images.fixed[0]), _points(landmarks[1], images.moving[0])
    found, files = run_chain(
        maps,
        ChainInputs(
            images.fixed, images.moving, images.fixed_masks, images.moving_masks, *points,
            start,
        ),
        lambda number, share, text: events.progress(Progress(share, text, number, stages[number].name)),
        events.log, seed=options.seed, threads=options.threads, priority=options.priority,
    )  # fmt: skip
    reports = []
    for number, (stage, one) in enumerate(zip(stages, found, strict=True)):
        report = StageReport(
            stage.name, stage.parameters, one.seconds, number + 1, one.warped, None, one.facts, one.iteration_info
        )  # fmt: skip
        events.progress(Progress(1.0, "done", number, stage.name))
        events.log.info(f"stage {number}: {one.seconds:.1f} s")
        events.stage_done(number, report)
        reports.append(report)
    settings = {name: getattr(options, name) for name in ("threads", "seed", "device", "priority")}
    return ElastixResult(images, tuple(reports), files, settings, inputs)


def _initial_file(initial: str | Path | TransformChain | None, dimension: int) -> str | None:
    """Return the file to start from, which must be elastix's and of the images' dimension."""
    if initial is None or (isinstance(initial, TransformChain) and not initial.links):
        return None
    if isinstance(initial, TransformChain) or Path(initial).suffix.lower() not in PARAMETER_SUFFIXES:
        raise TransformError(
            "elastix computes this chain as a whole: give `initial` as an elastix transform file (.txt)"
        )
    for values in list_transform_maps(initial):
        check_sizes(values, dimension)
    return str(Path(initial).resolve())


def _without_own_keys(values: ParameterMap, events: RegistrationEvents) -> ParameterMap:
    """Return a map without the keys that are this package's, which go stage by stage."""
    own = [key for key in declared_keys(ElastixSettings) if key in values]
    if own:
        events.log.warning(f"{values.source}: left out, as elastix computes it as a whole: {', '.join(own)}")
    return values.without(*own)


def _check(maps: Sequence[ParameterMap], images: Images) -> None:
    for values in maps:
        if values.get_str("Transform", "") == NEEDS_LABELS:
            raise ParameterError(
                f"{values.source}: a {NEEDS_LABELS} needs the flag -labels, which elastix's library does not have; use "
                "the program elastix"
            )
        for key in DIMENSION_KEYS:
            if values.get_int(key, images.dimension) != images.dimension:
                found = values.get_str(key)
                raise ParameterError(
                    f"{values.source}: '{key}' is {found}, and the images have {images.dimension} dimensions"
                )
        check_output_keys(values)
        result_pixel_type(values)
    for role, several in (("fixed image", images.fixed), ("moving image", images.moving)):
        for image in several:
            check_values(image.array, role)
    for role, several in (("fixed mask", images.fixed_masks), ("moving mask", images.moving_masks)):
        if not all(mask.array.any() for mask in several):
            raise ImageError(f"the {role} is empty: no voxel differs from 0")


def _points(given: Any, image: ImageND) -> str | None:
    """Return landmarks as elastix's text."""
    if given is None:
        return None
    dimension = image.array.ndim
    if dimension != 3 and isinstance(given, str | Path):
        return read_points_text(given, dimension)
    if isinstance(given, str | Path):
        given = read_landmarks(given, image.to_3d().grid)
    return elastix_points_text(given) if isinstance(given, Landmarks) else points_text(given, dimension)
