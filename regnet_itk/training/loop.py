"""The training loop: blocks made on the fly, validation, log, and checkpoints that training continues from."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from regnet_itk.data.grid import FloatArray
from regnet_itk.data.suffixes import MODEL_SUFFIX
from regnet_itk.errors import InterruptedRunError, OutputError, ParameterError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.devices import find_device
from regnet_itk.networks.model import ModelDescription, save_model
from regnet_itk.output_files import check_inputs_stay
from regnet_itk.outputs import staged_folder
from regnet_itk.training.batch_statistics import find_norms, own_statistics_kept
from regnet_itk.training.checkpoints import Checkpoint, describe_plan
from regnet_itk.training.config import Judge, Phase, TrainingConfig
from regnet_itk.training.description import describe_machine, describe_model, model_name
from regnet_itk.training.events import TrainingEvents, TrainingStep
from regnet_itk.training.learner import Learner
from regnet_itk.training.log import LogRow, TrainingLog
from regnet_itk.training.phase_blocks import Blocks, PhaseBlocks
from regnet_itk.training.prepared import Prepared, prepare
from regnet_itk.training.processes import Processes, choose_own_device
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Preparation, find_images
from regnet_itk.training.stopping import Stop, stopping_between_steps
from regnet_itk.training.validation import Validation, ValidationBlocks

_VALIDATION_BLOCKS = 12
_CALIBRATION_STEPS = 30
_QUICK_CALIBRATION_STEPS = 6  # for a validation in between
_VALIDATION_SEED = 2018  # the same pairs for every run, whatever its own seed is
_SEED_STEP = 7919  # between the seeds of processes


@dataclass(frozen=True)
class TrainingOptions:
    """What a run depends on besides its configuration.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    cache : Path, optional
        Folder of the prepared images; ``cache`` in the run's folder by default.
    masks : Path, optional
        Folder with a mask of the same name for each image, in place of the region that is found in it.
    start_from : Path, optional
        A model whose weights training begins with.
    events : TrainingEvents
        Hears of every step, and logs a line for each validation.
    """

    device: str = "auto"
    cache: Path | None = None
    masks: Path | None = None
    start_from: Path | None = None
    events: TrainingEvents = field(default_factory=TrainingEvents)


class Trainer:
    """Train one network as its configuration says.

    Parameters
    ----------
    config : TrainingConfig
    images : str or Path, optional
        Folder of the images that the configuration names; a configuration for scenes alone names none.
    folder : str or Path
        Where checkpoints, the log and the model go; created if needed.
    options : TrainingOptions

    Raises
    ------
    ImageError
        If an image is missing, cannot be used, or does not have the region that training looks at.
    ModelError
        If the model to start from is of another network.
    ParameterError
        If labels have weights and there are no masks.
    OutputError
        If the folder cannot be written, or holds the model of another training, or the one to start from under the
        name of the new one.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: str | Path | None,
        folder: str | Path,
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        self.config, self.folder, self.options = config, Path(folder), options
        check_inputs_stay(self.folder, [options.start_from], lambda name: name == self._model_path.name)
        with staged_folder(self.folder):
            pass  # it is there now, or an error says why not
        self.device = choose_own_device(find_device(options.device))
        self.processes = Processes.join(self.device)
        self.architecture = find_architecture(config.network)
        torch.manual_seed(config.seed)
        self.learner = Learner(config, self.device, self.processes, options.start_from)
        config.check_images()
        if config.label_weights and options.masks is None:
            raise ParameterError("'label_weights' are of the labels in masks: give a folder of `masks`")
        paths = find_images(images, (*config.train, *config.validation)) if images is not None else {}
        cache = options.cache or self.folder / "cache"
        how = Preparation(config.shown, config.source_smoothing, options.masks, config.label_weights)
        self.train_images, self.validation_images = (
            prepare(
                [paths[name] for name in names], config, how, cache, processes=self.processes, log=options.events.log
            ).on(self.device)
            for names in (config.train, config.validation)
        )
        if not config.validation:
            scenes = config.judged_by.scenes if config.judged_by else config.phases[-1].scenes
            self.validation_images = Prepared([], [], config.shown, scenes)
        self.phase_steps = [self._steps_of(phase) for phase in config.phases]
        self.random = Random(config.seed + _SEED_STEP * self.processes.rank, self.device)
        self.log = TrainingLog(self.folder, config.shown.training_place)
        self.step, self.seconds = 0, 0.0
        self._last_error: float | None = None
        self._stop = Stop()

    def _check_alone(self) -> None:
        """Refuse a folder with the model of another training."""
        start = self.options.start_from
        for path in sorted(self.folder.glob(f"*{MODEL_SUFFIX}")):
            if path.name != self._model_path.name and not (start and path.resolve() == start.resolve()):
                raise OutputError(
                    f"the output folder '{self.folder}' holds '{path.name}', the model of another training; give "
                    "another folder"
                )

    def _steps_of(self, phase: Phase) -> int:
        """Return the steps of a phase; an epoch shows as many outputs as there are positions."""
        if phase.steps:
            return phase.steps
        positions = sum(len(pair.positions) for pair in self.train_images.pairs)
        outputs = phase.blocks * phase.block_size**3 * self.processes.count
        return phase.epochs * math.ceil(positions / outputs)

    @property
    def continues(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self._checkpoint_path.exists()

    def run(self, resume: bool = True) -> Path:
        """Train through all phases and return the path of the model.

        With `resume`, continue from the checkpoint in the folder if there is one. An interruption leaves a checkpoint
        of the last step done.

        Raises
        ------
        ModelError
            If the checkpoint is damaged or of another network.
        OutputError
            If the folder cannot be written, or the disk is full.
        InterruptedRunError
            After an interruption, when the checkpoint is written.
        """
        try:
            with torch.backends.cudnn.flags(benchmark=True):  # blocks have one shape: the search pays
                return self._run(resume)
        finally:
            self.processes.leave()

    def _run(self, resume: bool) -> Path:
        if resume and self.continues:
            self._load_checkpoint()
        self._check_alone()
        if not resume and self.processes.first:  # of an earlier training, which this one takes the place of
            for file in (self._checkpoint_path, self.log.picture):
                file.unlink(missing_ok=True)
        if self.processes.first:
            self.log.forget_after(self.step)
        with stopping_between_steps() as self._stop:
            first = 0
            for number, steps in enumerate(self.phase_steps):
                if self.step < first + steps:
                    self._run_phase(number, first)
                first += steps
        judged = self.learner.judged
        if find_norms(judged) and not self.config.phases[-1].frozen_statistics:
            self._calibrate(judged, self.config.phases[-1])
        path = self._model_path
        if self.processes.first:
            save_model(judged, self._description(self.validate()), path)
            self.log.draw()
        self.processes.wait()
        return path

    def _run_phase(self, number: int, first: int) -> None:
        phase, steps = self.config.phases[number], self.phase_steps[number]
        made = PhaseBlocks(
            phase,
            self.train_images,
            self.architecture.block_shape(phase.block_size),
            self.config.working_voxel_size,
            random=self.random,
            seed=self.config.seed + _SEED_STEP * self.processes.rank,
        )
        if phase.frozen_statistics and self.step == first and not self._keeps_statistics(number):
            self._calibrate(self.learner.network, phase)
        started, losses = time.perf_counter(), []
        while self.step < first + steps:
            rate = self._learning_rate(phase, (self.step - first) / steps)
            blocks = made.of_step(self.step)
            losses.append(self.learner.learn(blocks, rate, phase, recurrent=self.random.happens(phase.recurrence)))
            self.step += 1
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self._tell(losses[-1][0], phase.blocks / seconds, seconds)
            started = time.perf_counter()
            if self.step % self.config.validate_every == 0 or self.step == sum(self.phase_steps):
                self._log(number, rate, np.mean(losses, axis=0))
                losses.clear()
            if self.step % self.config.checkpoint_every == 0 or self.step == sum(self.phase_steps):
                self._save_checkpoint()
            if self._stop.asked:
                self._save_checkpoint()
                raise InterruptedRunError(
                    f"interrupted after step {self.step}; the same command continues from the checkpoint in "
                    f"'{self.folder}'"
                )

    def _keeps_statistics(self, number: int) -> bool:
        """Whether a phase begins with weights that were learnt with the statistics that they have."""
        return self.config.phases[number - 1].frozen_statistics if number else self.options.start_from is not None

    def _tell(self, loss: float, blocks_per_second: float, seconds: float) -> None:
        steps = sum(self.phase_steps)
        mean = self.seconds / self.step if self.step else seconds
        self.options.events.step_done(
            TrainingStep(self.step, steps, loss, self._last_error, blocks_per_second, mean * (steps - self.step))
        )

    def _maker(self, phase: Phase, random: Random) -> Blocks:
        shape = self.architecture.block_shape(phase.block_size)
        return self.train_images.maker(shape, self.config.working_voxel_size, random, phase.pairs)

    @staticmethod
    def _learning_rate(phase: Phase, progress: float) -> float:
        start, end = phase.learning_rate
        rate = end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
        return rate / phase.decay ** int(progress * phase.epochs)

    def validate(self, during: Phase | None = None) -> Validation:
        """Measure the network on pairs of the validation images, always the same ones.

        While batch normalisation learns, its running statistics lag behind the weights; `during` is the phase whose
        blocks then give the statistics to measure with. Training goes on with its own.
        """
        judged = self.learner.judged
        if during is None or not find_norms(judged) or during.frozen_statistics:
            return self._validated()
        with own_statistics_kept(judged):
            random = Random(self.config.seed + 2, self.device)
            self._gather_statistics(judged, during, _QUICK_CALIBRATION_STEPS, random)
            return self._validated()

    def _validated(self) -> Validation:
        last, judge = self.config.phases[-1], self.config.judged_by
        blocks = ValidationBlocks(
            self.validation_images,
            judge or Judge(last.fields, last.appearance),
            self.architecture.block_shape(last.block_size),
            _VALIDATION_BLOCKS,
            _VALIDATION_SEED,
            self.device,
            pairs=None if judge else last.pairs,
        )
        return blocks.measure(self.learner.as_model(self.learner.judged), self.learner.precision)

    def _calibrate(self, network: nn.Module, phase: Phase) -> None:
        """Average the statistics of batch normalisation over fresh blocks: the running ones lag behind."""
        self._gather_statistics(network, phase, _CALIBRATION_STEPS, self.random)
        self.processes.same_weights(network)

    def _gather_statistics(self, network: nn.Module, phase: Phase, steps: int, random: Random) -> None:
        maker = self._maker(phase, random)
        batches = ([maker.make(phase.fields, phase.appearance, phase.blocks)] for _ in range(steps))
        self.learner.gather_statistics(network, batches)

    def _log(self, phase: int, rate: float, training: FloatArray) -> None:
        if not self.processes.first:
            return
        found = self.validate(during=self.config.phases[phase])
        self._last_error = found.error
        loss, left = (float(v) for v in training)
        row = LogRow(self.step, phase, self.seconds, rate, loss, left, found.error, *found.per_axis, found.displacement)
        self.log.append(row)
        self.log.draw()
        self.options.events.log.info(row.line())

    @property
    def _model_path(self) -> Path:
        return self.folder / f"{model_name(self.config)}{MODEL_SUFFIX}"

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save_checkpoint(self) -> None:
        random = self.processes.gather(self.random.state())
        if self.processes.first:
            self.learner.checkpoint(random, self.step, self.seconds).write(self._checkpoint_path)

    def _load_checkpoint(self) -> None:
        found = Checkpoint.read(self._checkpoint_path, self.config.network, describe_plan(self.config))
        self.learner.restore(found)
        self.random.restore(found.random[self.processes.rank % len(found.random)])
        self.step, self.seconds = found.step, found.seconds

    def _description(self, found: Validation) -> ModelDescription:
        training = {
            "seconds": round(self.seconds),
            "steps": self.step,
            "machine": describe_machine(self.device, self.processes.count, self.learner.precision),
            "torch": str(torch.__version__),
            **({"started_from": self.learner.start} if self.learner.start else {}),
        }
        measured = {
            "mean_displacement_mm": round(found.displacement, 3),
            "mean_error_mm": round(found.error, 3),
            "mean_absolute_mm": [round(part, 3) for part in found.per_axis],
        }
        validation = {
            "images": list(self.config.validation) or "random scenes",
            "pairs": "blocks of the recipe's own pairs",
            f"inside the {self.config.shown.training_place}": {"all": measured},
        }
        return describe_model(self.config, training, {"validation": validation})
