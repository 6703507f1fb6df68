"""A stage that elastix computes, in a process of its own (`regnet_itk.elastix.jobs` says why)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import Landmarks, elastix_points_text
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.elastix.components import COMPONENTS
from regnet_itk.elastix.jobs import Follower, job_folder, run_job, write_images, write_masks, writing_to
from regnet_itk.elastix.registration_log import RegistrationLog
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.parameters import parse_parameter_text
from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
from regnet_itk.stages.elastix_settings import ElastixSettings
from regnet_itk.stages.guarded_run import run_guarded
from regnet_itk.stages.keys import declared_keys
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS
from regnet_itk.transforms.elastix_reading import chain_from_maps
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.registry import find_elastix_type, stage_names
from regnet_itk.transforms.resampling_keys import result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

BENDING_ENERGY = "TransformBendingEnergyPenalty"
DIMENSION_KEYS = ("FixedImageDimension", "MovingImageDimension")
POINTS_METRIC = "CorrespondingPointsEuclideanDistanceMetric"
_FILES_OF_ITS_OWN = (
    "WriteTransformParametersEachIteration",
    "WriteTransformParametersEachResolution",
    "WriteResultImageAfterEachIteration",
    "WriteResultImageAfterEachResolution",
    "WritePyramidImagesAfterEachResolution",
    "UseBinaryFormatForTransformationParameters",
    "ITKTransformOutputFileNameExtension",
    "WriteITKCompositeTransform",
)


@dataclass(frozen=True)
class ElastixStage(Stage):
    """One stage that elastix computes.

    Parameters
    ----------
    parameters : ParameterMap
        Any map that elastix takes, in three dimensions, whose transform this package can read. With keys of
        `ElastixSettings` more is done around elastix; without, the result is elastix's own.
    """

    settings_type: ClassVar[type] = ElastixSettings
    takes_several_images: ClassVar[bool] = True
    waits_for_another_process: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The transform that the stage finds, for messages and reports: "AffineTransform" .."""
        return self.parameters.get_str("Transform", "elastix")

    @property
    def guided_by_landmarks(self) -> bool:
        """Whether a metric is the distance of corresponding points."""
        return POINTS_METRIC in self.parameters.values.get("Metric", ())

    @property
    def follows(self) -> frozenset[str]:
        """What is to be ignored: elastix's masks leave it out."""
        return frozenset({"ignore"})

    @property
    def compares_any_contrast(self) -> bool:
        """Whether a metric is mutual information."""
        return any("MutualInformation" in metric for metric in self.parameters.values.get("Metric", ()))

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:
        """Refuse what elastix would stumble over after minutes, or not at all.

        Parameters
        ----------
        initial : TransformChain
            Where the stage starts.
        pair : ImagePair, optional
            Asked for landmarks, if a metric needs them.
        options
            Not looked at.

        Raises
        ------
        ParameterError
            If the transform cannot be carried on, the pixel type does not exist, a key of `ElastixSettings` does not
            fit, the bending energy is to be computed on top of a displacement field, or a metric needs landmarks and
            there are none.
        """
        source = self.parameters.source
        transform = self.parameters.get_str("Transform")
        kind = find_elastix_type(transform)
        if transform in COMPONENTS and not (kind and kind.in_stages):
            usable = ", ".join(stage_names())
            raise ParameterError(
                f"{source}: a stage can find a {transform} only among elastix's stages alone; use one of {usable}"
            )
        for key in DIMENSION_KEYS:
            if self.parameters.get_int(key, 3) != 3:
                raise ParameterError(f"{source}: '{key}' is {self.parameters.get_str(key)}, and the images are 3D")
        result_pixel_type(self.parameters)
        ElastixSettings.from_parameters(self.parameters)
        metrics = self.parameters.values.get("Metric", ())
        if pair is not None and ignores_direction(self.parameters, pair.fixed.grid.direction_matrix):
            raise ParameterError(
                f'{source}: (UseDirectionCosines "false") would find a transform that does not hold in the space of '
                'the image, whose axes are turned; write "true"'
            )
        if POINTS_METRIC in metrics and pair is not None and pair.fixed_landmarks is None:
            raise ParameterError(
                f"{source}: its metric {POINTS_METRIC} needs landmarks; give `fixed_landmarks` and `moving_landmarks`"
            )
        if BENDING_ENERGY in metrics and any(isinstance(link.transform, DisplacementField) for link in initial.links):
            raise ParameterError(
                f"{source}: elastix cannot compute the bending energy on top of a displacement field; remove "
                f"the metric {BENDING_ENERGY} or put the stage before RegNet"
            )

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Run elastix, and return `initial` with one link more.

        Parameters
        ----------
        pair : ImagePair
            The images and masks.
        initial : TransformChain
            Where to start.
        options : RunOptions
            Threads, seed, priority, and where to report.

        Returns
        -------
        StageResult
            `warped` is elastix's own result, unless the map says ``(WriteResultImage "false")`` or has keys of
            `ElastixSettings`.

        Raises
        ------
        ParameterError
            If the map asks for something that does not exist or cannot be combined with `initial`.
        RegistrationError
            If elastix fails; one line with its reason.
        """
        self.check(initial, pair, options)
        around = ElastixSettings.from_parameters(self.parameters)
        if around != ElastixSettings():
            return run_guarded(self, around, pair, initial, options)
        began = time.perf_counter()
        pair = pair.without_ignored()
        options.progress(0.0, "starting elastix")
        with job_folder() as job:
            with writing_to(job):
                settings = self._write_job(job, pair, initial, options)
            log = RegistrationLog(
                [self.parameters], lambda _, share, text: options.progress(share, text), options.log
            )  # fmt: skip
            follower = Follower(job / "output" / "elastix.log", log.take, log.report)
            run_job(job, settings, follower, self.parameters.source, options.meanwhile)
            link = self._read_link(job)
            warped = self._read_warped(job)
            tables = {
                file.stem.split(".")[-1]: file.read_text(encoding="utf-8")
                for file in sorted(job.glob("output/IterationInfo.*"))
            }
        options.progress(1.0, "done")
        seconds = time.perf_counter() - began
        return StageResult(initial.then(link), seconds, warped, log.facts[0], tables)

    def _write_job(self, job: Path, pair: ImagePair, initial: TransformChain, options: RunOptions) -> Mapping[str, Any]:
        (job / "initial").mkdir()
        chain = write_elastix(initial, job / "initial")
        (job / "parameters.txt").write_text(_for_elastix(self.parameters, options.seed).to_text(), encoding="utf-8")
        return {
            "task": "registration",
            "dimension": 3,
            "priority": options.priority,
            "threads": options.threads,
            "fixed": write_images(pair.fixed_images, job / "fixed"),
            "moving": write_images(pair.moving_images, job / "moving"),
            "fixed_masks": write_masks(pair.fixed_masks, job / "fixed_mask"),
            "moving_masks": write_masks(pair.moving_masks, job / "moving_mask"),
            "fixed_points": _write_points(pair.fixed_landmarks, job / "fixed_points.txt"),
            "moving_points": _write_points(pair.moving_landmarks, job / "moving_points.txt"),
            "parameters": [str(job / "parameters.txt")],
            "initial": str(chain[-1]) if chain else None,
        }

    def _read_link(self, job: Path) -> Link:
        file = job / "output" / "TransformParameters.0.txt"
        if not file.is_file():
            raise RegistrationError(f"{self.parameters.source}: elastix ended without writing a transform")
        values = parse_parameter_text(file.read_text(encoding="utf-8"), f"elastix's result of {self.parameters.source}")
        (link,) = chain_from_maps([values.without(*INITIAL_KEYS)]).links
        as_asked = link.parameters.with_(  # elastix's library replaces the first, and the others were for the way here
            ResultImagePixelType=result_pixel_type(self.parameters),
            ResultImageFormat=self.parameters.get_str("ResultImageFormat", "mhd"),
            CompressResultImage=self.parameters.get_bool("CompressResultImage", False),
        )
        return Link(link.transform, link.combine, as_asked)

    def _read_warped(self, job: Path) -> Image | None:
        file = job / "output" / "result.0.mha"
        if not self.parameters.get_bool("WriteResultImage", True):
            return None
        if not file.is_file():
            raise RegistrationError(f"{self.parameters.source}: elastix ended without writing the result image")
        found = read_image(file, "elastix's result")
        return Image(cast_values(found.array, result_pixel_type(self.parameters)), found.grid)


def _for_elastix(parameters: ParameterMap, seed: int | None) -> ParameterMap:
    """Return the map with which elastix is run: the files by which it hands over its result are not the user's."""
    changes: dict[str, Any] = {"ResultImageFormat": "mha", "CompressResultImage": False}
    if seed is not None:
        changes["RandomSeed"] = seed
    return parameters.without(*_FILES_OF_ITS_OWN, *declared_keys(ElastixSettings)).with_(changes)


def ignores_direction(parameters: ParameterMap, direction: FloatArray) -> bool:
    """Say whether a map asks for the axes of an image to be taken for those of space, and they are not."""
    asks = not parameters.get_bool("UseDirectionCosines", True)
    return asks and not np.allclose(direction, np.eye(len(direction)), atol=1e-6)


def _write_points(landmarks: Landmarks | None, path: Path) -> str | None:
    if landmarks is None:
        return None
    path.write_text(elastix_points_text(landmarks), encoding="utf-8")
    return str(path)
