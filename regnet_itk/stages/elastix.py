"""A stage that elastix computes, in a process of its own.

elastix keeps state from one run to the next, cannot be stopped from Python, and takes its caller down when it
crashes. In a fresh process none of that matters: runs are equal to the bit, and stop at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.errors import ParameterError, RegistrationError, did_you_mean
from regnet_itk.held_folders import HeldFolder
from regnet_itk.parameters import parse_parameter_text
from regnet_itk.stages.base import Detail, ImagePair, RunOptions, Stage, StageResult
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS
from regnet_itk.transforms.elastix_reading import chain_from_maps
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.registry import find_elastix_type, stage_names
from regnet_itk.transforms.resampling_keys import result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

BENDING_ENERGY = "TransformBendingEnergyPenalty"
_COMPONENT_NAMES = """
MultiResolutionRegistration MultiMetricMultiResolutionRegistration MultiResolutionRegistrationWithFeatures
FixedGenericImagePyramid FixedRecursiveImagePyramid FixedShrinkingImagePyramid FixedSmoothingImagePyramid
MovingGenericImagePyramid MovingRecursiveImagePyramid MovingShrinkingImagePyramid MovingSmoothingImagePyramid
Full Grid MultiInputRandomCoordinate Random RandomCoordinate RandomSparseMask
BSplineInterpolator BSplineInterpolatorFloat LinearInterpolator NearestNeighborInterpolator RayCastInterpolator
ReducedDimensionBSplineInterpolator
AdvancedKappaStatistic AdvancedMattesMutualInformation AdvancedMeanSquares AdvancedNormalizedCorrelation
CorrespondingPointsEuclideanDistanceMetric DisplacementMagnitudePenalty DistancePreservingRigidityPenalty
GradientDifference MissingStructurePenalty NormalizedGradientCorrelation NormalizedMutualInformation PCAMetric
PCAMetric2 PatternIntensity PolydataDummyPenalty StatisticalShapePenalty SumOfPairwiseCorrelationCoefficientsMetric
SumSquaredTissueVolumeDifference TransformBendingEnergyPenalty TransformRigidityPenalty
VarianceOverLastDimensionMetric
AdaptiveStochasticGradientDescent CMAEvolutionStrategy ConjugateGradient ConjugateGradientFRPR
FiniteDifferenceGradientDescent FullSearch Powell PreconditionedStochasticGradientDescent QuasiNewtonLBFGS
RSGDEachParameterApart RegularStepGradientDescent Simplex SimultaneousPerturbation StandardGradientDescent
FinalBSplineInterpolator FinalBSplineInterpolatorFloat FinalLinearInterpolator FinalNearestNeighborInterpolator
FinalRayCastInterpolator FinalReducedDimensionBSplineInterpolator
DefaultResampler
AffineDTITransform AffineLogStackTransform AffineLogTransform AffineTransform BSplineStackTransform
BSplineTransform DeformationFieldTransform EulerStackTransform EulerTransform ExternalTransform
MultiBSplineTransformWithNormal RecursiveBSplineTransform SimilarityTransform SplineKernelTransform
TranslationStackTransform TranslationTransform WeightedCombinationTransform
"""
COMPONENTS = tuple(_COMPONENT_NAMES.split())
"""The components that elastix 5.3.1 has."""

_POLL_SECONDS = 0.2
_ITERATIONS_SHARE = 0.97
_WORKER = Path(__file__).with_name("elastix_worker.py")
_ITERATION = re.compile(r"\d+\t")
_RESOLUTION = re.compile(r"Resolution: (\d+)$")
_REASON = re.compile(r"Description: ITK ERROR: (?:\w+\(\w+\): )?(.*)", re.DOTALL)
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
_ADVICE = {
    "too many samples map outside": "the images or masks do not overlap: check where they lie, set "
    '(AutomaticTransformInitialization "true") in the first stage, or give an initial transform',
    "no valid voxels": "no sample lies in both images and masks: check that the masks are not empty and that the "
    "images overlap",
    "not implemented for deformationfield": "one of its metrics cannot start from a displacement field: use an "
    "intensity metric, or put the stage before RegNet",
    "casting entry number": "correct the value in the parameter file",
    "could not find enough image samples": "the mask is too small: enlarge it, or use fewer samples",
    "failed to allocate": "the images do not fit into memory: use smaller ones",
}
_ADVICE["bad_alloc"] = _ADVICE["failed to allocate"]


@dataclass(frozen=True)
class ElastixStage(Stage):
    """One stage that elastix computes.

    Parameters
    ----------
    parameters : ParameterMap
        Any map that elastix takes, in three dimensions, whose transform this package can read.
    """

    @property
    def name(self) -> str:
        """The transform that the stage finds, for messages and reports: "AffineTransform" .."""
        return self.parameters.get_str("Transform", "elastix")

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:
        """Refuse what elastix would stumble over after minutes, or not at all.

        Parameters
        ----------
        initial : TransformChain
            Where the stage starts.
        pair, options
            Not looked at.

        Raises
        ------
        ParameterError
            If the transform cannot be carried on, the pixel type does not exist, or the bending energy is to be
            computed on top of a displacement field.
        """
        source = self.parameters.source
        transform = self.parameters.get_str("Transform")
        kind = find_elastix_type(transform)
        if transform in COMPONENTS and not (kind and kind.in_stages):
            usable = ", ".join(stage_names())
            raise ParameterError(f"{source}: a stage cannot find a {transform} here; use one of {usable}")
        result_pixel_type(self.parameters)
        bending = "Metric" in self.parameters and BENDING_ENERGY in self.parameters["Metric"]
        if bending and any(isinstance(link.transform, DisplacementField) for link in initial.links):
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
            `warped` is elastix's own result, unless the map says ``(WriteResultImage "false")``.

        Raises
        ------
        ParameterError
            If the map asks for something that does not exist or cannot be combined with `initial`.
        RegistrationError
            If elastix fails; one line with its reason.
        """
        self.check(initial, pair, options)
        began = time.perf_counter()
        options.progress(0.0, "starting elastix")
        with _temporary_folder() as folder:
            job = folder.path
            try:
                self._write_job(job, pair, initial, options)
            except OSError as error:
                raise _no_room(job.parent, error) from None
            log = _Log(job / "output" / "elastix.log", self.parameters, options)
            _run_worker(job, log, self.parameters.source)
            link = self._read_link(job)
            warped = self._read_warped(job)
            tables = {
                file.stem.split(".")[-1]: file.read_text(encoding="utf-8")
                for file in sorted(job.glob("output/IterationInfo.*"))
            }
        options.progress(1.0, "done")
        seconds = time.perf_counter() - began
        return StageResult(initial.then(link), seconds, warped, log.details(), tables)

    def _write_job(self, job: Path, pair: ImagePair, initial: TransformChain, options: RunOptions) -> None:
        for name in ("output", "initial"):
            (job / name).mkdir()
        chain = write_elastix(initial, job / "initial")
        (job / "parameters.txt").write_text(_for_elastix(self.parameters, options.seed).to_text(), encoding="utf-8")
        settings = {
            "parent": os.getpid(),
            "priority": options.priority,
            "threads": options.threads,
            "fixed": _write_input(pair.fixed, np.float32, job / "fixed.mha"),
            "moving": _write_input(pair.moving, np.float32, job / "moving.mha"),
            "fixed_mask": pair.fixed_mask and _write_mask(pair.fixed_mask, job / "fixed_mask.mha"),
            "moving_mask": pair.moving_mask and _write_mask(pair.moving_mask, job / "moving_mask.mha"),
            "parameters": str(job / "parameters.txt"),
            "initial": str(chain[-1]) if chain else None,
            "output": str(job / "output"),
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")

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
    return parameters.without(*_FILES_OF_ITS_OWN).with_(changes)


def _temporary_folder() -> HeldFolder:
    try:
        return HeldFolder(tempfile.gettempdir(), "regnet-itk-job-")
    except OSError as error:
        raise _no_room(Path(error.filename or "").parent, error) from None


def _no_room(folder: Path, error: OSError | None = None) -> RegistrationError:
    reason = f" ({error.strerror})" if error is not None and error.strerror else ""
    return RegistrationError(
        f"the temporary folder '{folder}' is full or not writable{reason}; free some space or set TMPDIR"
    )


def _write_input(image: Image, dtype: Any, path: Path) -> str:
    import SimpleITK as sitk

    try:
        sitk.WriteImage(Image(image.array.astype(dtype), image.grid).to_sitk(), str(path), useCompression=False)
    except RuntimeError:
        raise _no_room(path.parent.parent) from None
    return str(path)


def _write_mask(mask: Image, path: Path) -> str:
    return _write_input(Image(mask.array != 0, mask.grid), np.uint8, path)


@dataclass
class _Log:
    """Follows elastix.log while it grows: passes lines on and turns the iterations into progress."""

    path: Path
    parameters: ParameterMap
    options: RunOptions
    telling: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    facts: dict[str, Detail] = field(default_factory=dict)
    position: int = 0
    rest: str = ""
    resolution: int = 0
    iterations: int = 0

    def __post_init__(self) -> None:
        count = self.parameters.get_int("NumberOfResolutions", 3)
        given = self.parameters.get_ints("MaximumNumberOfIterations", default=[500])
        self.planned = [given[r] if r < len(given) else given[0] for r in range(count)]
        self.facts["resolutions"] = count

    def follow(self) -> None:
        """Read what is new, and report how far elastix is."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            new = file.read()
        self.position += len(new)
        *lines, self.rest = (self.rest + new.decode("utf-8", "replace")).split("\n")
        for line in lines:
            self._take(line.rstrip("\r"))
        if new:
            self._report()

    def _take(self, line: str) -> None:
        self.options.log.debug("%s", line)
        if _ITERATION.match(line):
            self.iterations += 1
            return
        if match := _RESOLUTION.match(line):
            self.resolution, self.iterations = int(match[1]), 0
        for fact, name, convert in _FACTS:
            if match := fact.match(line):
                self.facts[name] = convert(match[1])
        self.telling.append(line)

    def _report(self) -> None:
        done = sum(self.planned[: self.resolution]) + self.iterations
        share = min(1.0, done / max(1, sum(self.planned)))
        text = f"resolution {self.resolution + 1} of {len(self.planned)}, iteration {self.iterations}"
        self.options.progress(_ITERATIONS_SHARE * share, text)

    def details(self) -> dict[str, Detail]:
        """Return what the log told, for the record."""
        return dict(self.facts)


_FACTS: tuple[tuple[re.Pattern[str], str, Callable[[str], Detail]], ...] = (
    (re.compile(r"ELASTIX version: (\S+)"), "elastix", str),
    (re.compile(r"Final metric value\s*= (\S+)"), "final_metric", float),
    (re.compile(r"\(RandomSeed (\d+)\)"), "random_seed", int),
)


def _run_worker(job: Path, log: _Log, source: str) -> None:
    """Run the child process to its end; it does not outlive this function."""
    command = [sys.executable, "-P", str(_WORKER), str(job)]
    with (job / "stderr.txt").open("wb") as stderr:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            while child.poll() is None:
                log.follow()
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
    log.follow()
    if child.returncode != 0:
        raise _failure(child.returncode, job, log, source)


def _failure(status: int, job: Path, log: _Log, source: str) -> ParameterError | RegistrationError:
    """Return the error for a child process that failed: one line, with what to do where that is known."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        why = "; probably memory ran out: use smaller images" if name == "SIGKILL" else ""
        return RegistrationError(f"{source}: elastix was ended by the signal {name}{why}")
    reason = _reason_in_log(log.telling) or _reason_in_error(job)
    if match := re.search(r"could not be created: (\S+)", reason):
        near = did_you_mean(match[1], COMPONENTS) or "; see elastix's manual for the names it knows"
        return ParameterError(f"{source}: elastix has no component '{match[1]}'{near}")
    if match := re.search(r"component has not been specified: (\S+)", reason):
        return ParameterError(f"{source}: the key '{match[1]}' is missing; say which {match[1]} elastix shall use")
    advice = next((text for sign, text in _ADVICE.items() if sign in reason.lower()), "")
    return RegistrationError(f"{source}: elastix failed: {reason}{'; ' if advice else ''}{advice}")


def _reason_in_log(lines: Iterable[str]) -> str:
    """Return the reason that elastix's log gives, on one line, or an empty string."""
    text = "\n".join(lines)
    if found := re.search(r"Description: .*?(?=\n\s*\n|$(?!\n))", text, re.DOTALL):
        match = _REASON.match(found[0])
        return _one_line(match[1] if match else found[0].removeprefix("Description: "))
    errors = re.findall(r"^ERROR: (.*)$", text, re.MULTILINE)
    return _one_line(errors[0]) if errors else ""


def _reason_in_error(job: Path) -> str:
    """Return the reason that the child process left, or the last line that it printed."""
    for name in ("error.txt", "stderr.txt"):
        file = job / name
        text = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
        if text:
            return _one_line(text if name == "error.txt" else text.splitlines()[-1])
    return "no reason was given"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().removeprefix("ERROR: ").rstrip(".")
