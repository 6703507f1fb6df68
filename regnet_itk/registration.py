"""Run a chain of stages on a pair of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.evaluation.metrics import ErrorSummary, summarise_errors
from regnet_itk.geometry import Grid
from regnet_itk.images import Image, as_image, check_mask, check_registrable, read_image
from regnet_itk.parameters import ParameterMap, check_parameter_map, read_parameter_map
from regnet_itk.points import Landmarks, check_landmarks, read_landmarks
from regnet_itk.results import RegistrationResult, StageReport
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms import TransformChain, field_link, read_chain

DEFAULT_STAGES = ("affine", "regnet_multistage")

Progress = Callable[[int, str, float, str], None]
"""Is given the number and the name of the stage, the fraction of it that is done, and a short text."""

Report = Callable[[int, StageReport], None]
"""Is given each stage's number and report when it has ended."""


def register(
    fixed: Any,
    moving: Any,
    stages: Sequence[str | Path | ParameterMap] = DEFAULT_STAGES,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial: str | Path | TransformChain | None = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    threads: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    priority: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    log: Callable[[str], None] | None = None,
) -> RegistrationResult:
    """Register `moving` to `fixed` by a chain of elastix and RegNet stages.

    Parameters
    ----------
    fixed, moving : itk.Image, SimpleITK.Image, Image, or path
        Scalar 3D images with their spacing, origin and direction. For arrays: ``Image(array, Grid(..))``.
    stages : sequence of str, Path or ParameterMap
        Names of shipped parameter files ("affine", "regnet", "bspline_3r" ..), paths, or parameter maps, in the order
        in which they run.
    fixed_mask, moving_mask : like the images, optional
        Voxels other than 0 count; on the grids of their images.
    initial : path or TransformChain, optional
        Where to start: an elastix transform file (``-t0``), an ITK transform file, or a chain.
    fixed_landmarks, moving_landmarks : ndarray (n, 3), Landmarks or path, optional
        Corresponding points in mm, LPS; their errors are reported, they do not guide the registration.
    threads : int, optional
        CPU threads; all by default.
    seed : int, optional
        Takes the place of ``RandomSeed`` in elastix's stages.
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps", for the networks.
    priority : str, optional
        elastix's ``-priority``: "high", "abovenormal", "normal", "belownormal", "idle".
    progress, report, log : callable, optional
        See :data:`Progress` and :data:`Report`; `log` is given each line.

    Returns
    -------
    RegistrationResult
        With the transform, the warped image, the displacement field, and a report for each stage.

    Raises
    ------
    ImageError, PointsError, ParameterError, TransformError, ModelError, RegistrationError
        Each with one line that says what was given and what to do.
    """
    say = log or (lambda line: None)
    pair = image_pair(fixed, moving, fixed_mask, moving_mask)
    chain = _initial_chain(initial)
    planned = plan_stages(stages, chain, say)
    error = _LandmarkError.of(fixed_landmarks, moving_landmarks, pair)
    first_error, given = error.under(chain), len(chain.links)
    reports: list[StageReport] = []
    for number, stage in enumerate(planned):

        def stage_progress(fraction: float, text: str, number: int = number, name: str = stage.name) -> None:
            if progress is not None:
                progress(number, name, fraction, text)

        options = RunOptions(threads, seed, device, priority, say, stage_progress)
        say(f"stage {number}: {stage.name} ({stage.parameters.source})")
        found = stage.run(pair, chain, options)
        chain = found.chain
        done = StageReport(
            stage.name, stage.parameters, found.seconds, len(chain.links), found.warped, error.under(chain),
            found.details, found.iteration_info,
        )  # fmt: skip
        say(f"stage {number}: {found.seconds:.1f} s" + (f", TRE {done.tre.mean:.2f} mm" if done.tre else ""))
        reports.append(done)
        if report is not None:
            report(number, done)
    settings = {"threads": threads, "seed": seed, "device": device, "priority": priority}
    return RegistrationResult(pair, chain, tuple(reports), given, first_error, error.fixed, settings)


def image_pair(fixed: Any, moving: Any, fixed_mask: Any = None, moving_mask: Any = None) -> ImagePair:
    """Read or take two images and their masks, and check that they can be registered.

    Raises
    ------
    ImageError
        If one cannot be read, is not 3D and scalar, has NaN, is constant, or a mask is empty or on another grid.
    """
    images = {}
    for role, given in (("fixed", fixed), ("moving", moving)):
        images[role] = _image(given, f"{role} image")
        check_registrable(images[role], f"{role} image")
    masks: dict[str, Image | None] = {}
    for role, given in (("fixed", fixed_mask), ("moving", moving_mask)):
        masks[role] = None if given is None else _image(given, f"{role} mask")
        mask = masks[role]
        if mask is not None:
            check_mask(mask, images[role], role)
    return ImagePair(images["fixed"], images["moving"], masks["fixed"], masks["moving"])


def plan_stages(
    stages: Sequence[str | Path | ParameterMap], initial: TransformChain, say: Callable[[str], None] = lambda _: None
) -> list[ElastixStage | RegNetStage]:
    """Read and check the parameter maps, and find what would fail later, before anything runs.

    Raises
    ------
    ParameterError, ModelError
    """
    if not stages:
        raise ParameterError("no stage was given; name at least one parameter file, such as 'affine'")
    planned: list[ElastixStage | RegNetStage] = []
    expected = initial
    for given in stages:
        parameters = given if isinstance(given, ParameterMap) else read_parameter_map(given)
        for warning in check_parameter_map(parameters):
            say(f"warning: {warning}")
        stage = RegNetStage(parameters) if parameters.is_regnet else ElastixStage(parameters)
        stage.check(expected)
        if parameters.is_regnet:
            expected = expected.then(field_link(DisplacementField(np.zeros((1, 1, 1, 3)), Grid((1, 1, 1)))))
        planned.append(stage)
    return planned


def _image(given: Any, role: str) -> Image:
    if isinstance(given, str | Path):
        return read_image(given, role)
    try:
        return as_image(given)
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from None


def _initial_chain(initial: str | Path | TransformChain | None) -> TransformChain:
    if initial is None:
        return TransformChain()
    return initial if isinstance(initial, TransformChain) else read_chain(initial)


class _LandmarkError:
    """Landmarks of a pair, and their error under a transform; without landmarks there is none."""

    def __init__(self, fixed: Any, moving: Any) -> None:
        self.fixed, self.moving = fixed, moving

    @classmethod
    def of(cls, fixed: Any, moving: Any, pair: ImagePair) -> _LandmarkError:
        if fixed is None and moving is None:
            return cls(None, None)
        if fixed is None or moving is None:
            raise ParameterError("landmarks are needed for both images (-fp and -mp), or for none")
        of_fixed = _landmarks(fixed, pair.fixed.grid)
        of_moving = _landmarks(moving, pair.moving.grid)
        check_landmarks(of_fixed, of_moving, pair.fixed.grid, pair.moving.grid)
        return cls(of_fixed.points, of_moving.points)

    def under(self, chain: TransformChain) -> ErrorSummary | None:
        if self.fixed is None:
            return None
        return summarise_errors(chain.map_points(self.fixed) - self.moving)


def _landmarks(given: Any, grid: Grid) -> Landmarks:
    if isinstance(given, Landmarks):
        return given
    if isinstance(given, str | Path):
        return read_landmarks(given, grid)
    return Landmarks(np.asarray(given, dtype=float))
