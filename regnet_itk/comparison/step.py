"""One step of a comparison, in a process of its own: run a stage on a pair of images, and measure what it found."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from regnet_itk.comparison.pairs import Pair
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import check_landmarks, read_landmarks
from regnet_itk.errors import ImageError, RegNetItkError
from regnet_itk.metrics.measures import (
    ErrorMoments,
    dice,
    folding_share,
    label_dice,
    log_jacobian_sd,
    normalised_correlation,
    transform_error,
)
from regnet_itk.outputs import staged_folder
from regnet_itk.registration_inputs import image_pair
from regnet_itk.results import overview_grid
from regnet_itk.stages.base import Detail, ImagePair, RunOptions, Stage
from regnet_itk.threads import wait_briefly
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix

RECORD = "measures.json"
AIR = -1000.0


@dataclass(frozen=True)
class StepSettings:
    """How all steps of a comparison are run.

    Parameters
    ----------
    threads, seed, device : as for :func:`regnet_itk.register`
    masks_guide : bool
        Whether the masks are given to the stages. The measures are taken inside the fixed mask in any case.
    """

    threads: int | None = None
    seed: int | None = None
    device: str = "auto"
    masks_guide: bool = True


@dataclass(frozen=True)
class Measures:
    """How good a transform T of a pair is; None or empty where the pair does not tell.

    Parameters
    ----------
    mapped : list of points
        T(x_i) of the fixed landmarks, mm, LPS.
    differences : list of vectors
        T(x_i) - y_i, mm.
    field : ErrorMoments, optional
        Errors of the displacement inside the fixed mask.
    folding, log_jacobian_sd : float
        Share of det J <= 0, and standard deviation of log det J, inside the fixed mask, on voxels of 2 mm or more.
    correlation : float
        Of the fixed and the warped image, inside the fixed mask.
    dice : mapping
        Overlap of each label (or of the masks, called "mask"), the moving one warped.
    """

    mapped: list[list[float]]
    differences: list[list[float]]
    field: ErrorMoments | None
    folding: float
    log_jacobian_sd: float
    correlation: float
    dice: Mapping[str, float]


@dataclass(frozen=True)
class StepRecord:
    """What a step did, as ``measures.json`` keeps it.

    Parameters
    ----------
    label : str
        The stage's name.
    key, measured_key : str
        Of what the transform, and the measures, were computed from; if they differ, so may the result.
    transform : str
        File of the whole transform up to this step, in the step's folder; empty before any stage.
    seconds : float
        Wall-clock time of the stage alone.
    peak_mb : float
        Largest memory of any of its processes, MB.
    details : mapping
        What the stage said about itself.
    measures : Measures
    """

    label: str
    key: str
    measured_key: str
    transform: str
    seconds: float
    peak_mb: float
    details: Mapping[str, Detail]
    measures: Measures

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StepRecord | None:
        """Read a record; None if there is none, or it is of another version of this program."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            measures = content.pop("measures")
            moments = measures.pop("field")
            found = None if moments is None else ErrorMoments(
                moments["count"], tuple(moments["sums"]), tuple(moments["squares"])
            )  # fmt: skip
            return cls(**content, measures=Measures(**measures, field=found))
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class Step:
    """What a child process is given; see :func:`run_step`.

    Parameters
    ----------
    pair : Pair
    stage : Stage, optional
        None to measure the pair as it is.
    label : str
    initial : Path, optional
        Transform file to start from.
    folder : Path
        Where transform and record are written.
    key, measured_key : str
        See :class:`StepRecord`.
    settings : StepSettings
    kept : StepRecord, optional
        A record whose transform still holds: only the measures are taken again.
    """

    pair: Pair
    stage: Stage | None
    label: str
    initial: Path | None
    folder: Path
    key: str
    measured_key: str
    settings: StepSettings = field(default_factory=StepSettings)
    kept: StepRecord | None = None


def run_step(step: Step, sender: Connection) -> None:
    """Run and measure a step; report progress, and at the end "done" or "failed" with a reason, to `sender`."""
    wait_briefly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, _terminated)

    def tell(fraction: float, text: str) -> None:
        sender.send(("progress", fraction, text))

    try:
        _run(step, tell, lambda line: sender.send(("log", 0.0, line)))
        sender.send(("done", 1.0, ""))
    except RegNetItkError as error:
        sender.send(("failed", 0.0, str(error)))
    except MemoryError:
        sender.send(("failed", 0.0, "out of memory; use smaller images or a mask"))
    except Exception as error:  # one pair must not stop the others
        sender.send(("failed", 0.0, f"{type(error).__name__}: {error}"))


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds the stack, so that temporary files and elastix's process go


def _run(step: Step, tell: Callable[[float, str], None], log: Callable[[str], None]) -> None:
    if step.settings.threads:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(step.settings.threads)
    pair = step.pair
    images = image_pair(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
    seconds, memory, details = 0.0, 0.0, dict[str, Detail]()
    if step.kept is not None:
        seconds, memory, details = step.kept.seconds, step.kept.peak_mb, dict(step.kept.details)
        chain = read_chain(step.folder / step.kept.transform) if step.kept.transform else TransformChain()
    else:
        chain = read_chain(step.initial) if step.initial else TransformChain()
        if step.stage is not None:
            guided = images if step.settings.masks_guide else ImagePair(images.fixed, images.moving)
            options = RunOptions(
                step.settings.threads, step.settings.seed, step.settings.device, log=log, progress=tell
            )
            result = step.stage.run(guided, chain, options)
            chain, seconds, details = result.chain, result.seconds, dict(result.details)
            memory = peak_memory()
    tell(1.0, "measuring")
    measures = measure(chain, images, pair)
    with staged_folder(step.folder) as stage:
        written = write_elastix(chain, stage, step.folder)
        name = written[-1].name if written else ""
        record = StepRecord(step.label, step.key, step.measured_key, name, seconds, memory, details, measures)
        record.write(stage / RECORD)


def peak_memory() -> float:
    """Return the most memory in MB that this process, or one that it started, had at a time.

    On Linux ``ru_maxrss`` begins with that of the parent; the kernel's high-water mark of the process does not.
    """
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    status = Path("/proc/self/status")
    if status.is_file():
        lines = (line.split() for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        own = next((float(words[1]) / 1024 for words in lines), own)
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)


def measure(chain: TransformChain, images: ImagePair, pair: Pair) -> Measures:
    """Measure a transform of a pair, through the whole chain.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    images : ImagePair
        With the fixed mask, inside which the measures are taken.
    pair : Pair
        Names the landmarks, the true displacement and the labels.

    Raises
    ------
    PointsError, TransformError, ImageError
        If one of these cannot be read or does not fit.
    """
    fixed, mask = images.fixed, images.fixed_mask
    mapped, differences = _landmarks(chain, images, pair)
    grid = overview_grid(fixed.grid)
    determinant = Image(chain.displacement_on(grid).jacobian_determinant(), grid)
    inside = _mask_on(mask, grid)
    outside_value = AIR if images.moving.array.min() < AIR / 2 else float(images.moving.array.min())
    warped = images.moving.resampled(fixed.grid, chain.to_sitk(fixed.grid), order=3, default=outside_value)
    return Measures(
        mapped=mapped.tolist(),
        differences=differences.tolist(),
        field=_field_error(chain, mask, pair),
        folding=folding_share(determinant, inside),
        log_jacobian_sd=log_jacobian_sd(determinant, inside),
        correlation=normalised_correlation(fixed, warped, mask),
        dice=_overlaps(chain, images, pair),
    )


def _landmarks(chain: TransformChain, images: ImagePair, pair: Pair) -> tuple[FloatArray, FloatArray]:
    """Return T(x_i) and T(x_i) - y_i, both (n, 3)."""
    if pair.fixed_landmarks is None or pair.moving_landmarks is None:
        return np.zeros((0, 3)), np.zeros((0, 3))
    fixed = read_landmarks(pair.fixed_landmarks, images.fixed.grid)
    moving = read_landmarks(pair.moving_landmarks, images.moving.grid)
    check_landmarks(fixed, moving, images.fixed.grid, images.moving.grid)
    mapped = chain.map_points(fixed.points)
    return mapped, mapped - moving.points


def _mask_on(mask: Image | None, grid: Grid) -> Image | None:
    """Return the mask on another grid; None without a mask."""
    if mask is None or mask.grid.is_close(grid, 1e-2):
        return mask
    found = Image((mask.array != 0).astype(np.uint8), mask.grid).resampled(grid, order=0)
    if not found.array.any():
        raise ImageError(
            f"the fixed mask covers no voxel of the grid on which is measured (spacing {grid.spacing} mm, origin "
            f"{grid.origin}): it is too small, or lies elsewhere than the true displacement field"
        )
    return found


def _field_error(chain: TransformChain, mask: Image | None, pair: Pair) -> ErrorMoments | None:
    if pair.displacement is None:
        return None
    truth = read_displacement_field(pair.displacement)
    return transform_error(chain, truth, _mask_on(mask, truth.grid))


def _overlaps(chain: TransformChain, images: ImagePair, pair: Pair) -> dict[str, float]:
    """Return the Dice coefficient of each label, or of the masks."""
    if pair.fixed_labels is not None and pair.moving_labels is not None:
        fixed, moving = read_image(pair.fixed_labels, "fixed labels"), read_image(pair.moving_labels, "moving labels")
        return {str(label): value for label, value in label_dice(fixed, _pulled(moving, chain, fixed.grid)).items()}
    if images.fixed_mask is not None and images.moving_mask is not None:
        moving = Image((images.moving_mask.array != 0).astype(np.uint8), images.moving_mask.grid)
        return {"mask": dice(images.fixed_mask, _pulled(moving, chain, images.fixed_mask.grid))}
    return {}


def _pulled(labels: Image, chain: TransformChain, grid: Grid) -> Image:
    """Return labels of the moving image on the fixed side."""
    return labels.resampled(grid, chain.to_sitk(grid), order=0)


def mean_dice(measures: Measures) -> float:
    """Return the mean overlap of the labels; NaN without any."""
    return float(np.mean(list(measures.dice.values()))) if measures.dice else float("nan")


def as_array(vectors: Any) -> FloatArray:
    """Return lists of vectors as an array (n, 3); there may be none."""
    return np.asarray(vectors, dtype=float).reshape(-1, 3)
