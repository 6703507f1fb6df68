"""One step of a comparison: run a stage on a pair of images, and measure what it found."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from regnet_itk.comparison.measuring import measure_transform
from regnet_itk.comparison.records import RECORD, StepRecord
from regnet_itk.events import Events, Progress
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registry import known_metrics
from regnet_itk.outputs import staged_folder
from regnet_itk.pairs import Pair
from regnet_itk.registration_inputs import LandmarkPair, guides_of, image_pair, with_guides
from regnet_itk.stages.base import Detail, ImagePair, RunOptions, Stage
from regnet_itk.threads import bound_resampling
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.trust.undoing import run_with_undo


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
    metrics : tuple of Metric
        What is measured.
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
    metrics: tuple[Metric, ...] = field(default_factory=known_metrics)
    kept: StepRecord | None = None


def run_step(step: Step, events: Events) -> None:
    """Run and measure a step, and write its transform and record.

    Raises
    ------
    RegNetItkError
        If the stage fails, or something cannot be read or written.
    """
    bound_resampling(step.settings.threads)
    pair = step.pair
    images = image_pair(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
    images = _with_guides(images, pair)
    done = _keep(step, step.kept) if step.kept is not None else _register(step, images, events)
    events.progress(Progress(1.0, "measuring"))
    measures = measure_transform(done.chain, images, pair, step.metrics, step.settings.threads)
    with staged_folder(step.folder) as stage:
        written = write_elastix(done.chain, stage, step.folder)
        name = written[-1].name if written else ""
        StepRecord(
            step.label, step.key, step.measured_key, name, done.seconds, done.peak_mb, done.details, measures
        ).write(stage / RECORD)  # fmt: skip


@dataclass(frozen=True)
class _Done:
    """What a stage found and what it cost."""

    chain: TransformChain
    seconds: float = 0.0
    peak_mb: float = 0.0
    details: dict[str, Detail] = field(default_factory=dict)


def _keep(step: Step, kept: StepRecord) -> _Done:
    """Return what was found before."""
    chain = read_chain(step.folder / kept.transform) if kept.transform else TransformChain()
    return _Done(chain, kept.seconds, kept.peak_mb, dict(kept.details))


def _register(step: Step, images: ImagePair, events: Events) -> _Done:
    """Run the stage of a step, if it has one."""
    chain = read_chain(step.initial) if step.initial else TransformChain()
    if step.stage is None:
        return _Done(chain)
    settings = step.settings
    guided = images if settings.masks_guide else replace(images, fixed_mask=None, moving_mask=None)
    options = RunOptions(settings.threads, settings.seed, settings.device, events=events)
    result = run_with_undo(step.stage, guided, chain, options)
    return _Done(result.chain, result.seconds, peak_memory(), dict(result.details))


def _with_guides(images: ImagePair, pair: Pair) -> ImagePair:
    """Return images with the masks of what is known, and the landmarks and labels that guide as others judge."""
    files = pair.guides
    landmarks = LandmarkPair.read(files.get("fixed_landmarks"), files.get("moving_landmarks"), images)
    images = replace(images, fixed_landmarks=landmarks.fixed, moving_landmarks=landmarks.moving)
    return with_guides(images, guides_of(files, "fixed"), guides_of(files, "moving"))


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
