"""The training loop: blocks made on the fly, validation, log, and checkpoints that training continues from."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regnet_itk.data.grid import FloatArray
from regnet_itk.errors import InterruptedRunError, ModelError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.devices import find_device, find_precision
from regnet_itk.networks.layers import warp
from regnet_itk.networks.model import Model, ModelDescription, load_model, save_model
from regnet_itk.outputs import staged_folder
from regnet_itk.training.batch_statistics import gather_statistics, norms_of, own_statistics_kept
from regnet_itk.training.blocks import Block, BlockMaker
from regnet_itk.training.checkpoints import Checkpoint
from regnet_itk.training.config import Judge, Phase, TrainingConfig
from regnet_itk.training.log import LogRow, TrainingLog
from regnet_itk.training.pairs import PairBlocks
from regnet_itk.training.paper_pairs import FREQUENCIES
from regnet_itk.training.prepared import prepare
from regnet_itk.training.processes import Processes, own_device
from regnet_itk.training.random import Random
from regnet_itk.training.sources import Preparation, Source, find_images
from regnet_itk.training.stopping import Stop, stopping_between_steps
from regnet_itk.training.validation import Validation, ValidationBlocks, predict_blocks, truth_at_outputs

_TEXTURE_SIZE = 160
_TEXTURE_STEPS = 50  # after so many steps comes another texture
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
    say : callable
        Takes the lines that tell how far training is.
    watch : callable
        Is told of every step.
    """

    device: str = "auto"
    cache: Path | None = None
    masks: Path | None = None
    start_from: Path | None = None
    say: Callable[[str], None] = lambda _: None
    watch: Callable[[TrainingProgress], None] = lambda _: None


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run is."""

    step: int
    steps: int
    loss: float
    validation: float | None
    """Error of the last validation, mm."""
    blocks_per_second: float
    seconds_left: float


class Trainer:
    """Train one network as its configuration says.

    Parameters
    ----------
    config : TrainingConfig
    images : str or Path
        Folder of the images that the configuration names.
    folder : str or Path
        Where checkpoints, the log and the model go; created if needed.
    options : TrainingOptions

    Raises
    ------
    ImageError
        If an image is missing, cannot be used, or does not have the region that training looks at.
    ModelError
        If the model to start from is of another network.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: str | Path,
        folder: str | Path,
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        self.config, self.folder, self.options = config, Path(folder), options
        with staged_folder(self.folder):
            pass  # it is there now, or an error says why not
        self.device = own_device(find_device(options.device))
        self.precision = find_precision("auto", self.device)
        self.processes = Processes.joined(self.device)
        self.architecture = find_architecture(config.network)
        self.voxel_size = self.architecture.voxel_size
        torch.manual_seed(config.seed)
        self.network = self._first_network()
        paths = find_images(images, (*config.train, *config.validation))
        cache = options.cache or self.folder / "cache"
        how = Preparation(config.shown, config.source_smoothing, options.masks)
        self.train_images, self.validation_images = (
            prepare([paths[name] for name in names], config, how, cache, processes=self.processes, say=options.say)
            for names in (config.train, config.validation)
        )
        self.phase_steps = [self._steps_of(phase) for phase in config.phases]
        self.random = Random(config.seed + _SEED_STEP * self.processes.rank, self.device)
        self.module = self.architecture.with_heads(self.network, config.auxiliary_outputs)
        self.module.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.trained = self.processes.wrapped(self.module)
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=1e-5)
        self.averaged = self._averaged_module()
        self.log = TrainingLog(self.folder)
        self.step, self.seconds = 0, 0.0
        self.textures: list[Source] = []
        self._last_error: float | None = None
        self._stop = Stop()

    def _averaged_module(self) -> AveragedModel | None:
        if not self.config.averaging:
            return None
        return AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(self.config.averaging))

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and saved: with averaged weights, if the configuration asks for them."""
        if self.averaged is None:
            return self.network
        module = self.averaged.module
        return module if self.module is self.network else module.get_submodule("network")

    def _first_network(self) -> nn.Module:
        self._start: dict[str, Any] = {}
        if self.options.start_from is None:
            return self.architecture.make(self.voxel_size)
        model = load_model(self.options.start_from)
        self._start = {"model": model.description.name, "sha256": model.digest, **_effort(model.description)}
        if model.description.architecture != self.config.network:
            raise ModelError(
                f"model '{self.options.start_from}' is of the network '{model.description.architecture}', but the "
                f"configuration trains '{self.config.network}'"
            )
        return model.network.requires_grad_(True)

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
        if resume and self.continues:
            self._load_checkpoint()
        if self.processes.first:
            self.log.forget_after(self.step)
        with stopping_between_steps() as self._stop:
            first = 0
            for number, steps in enumerate(self.phase_steps):
                if self.step < first + steps:
                    self._run_phase(number, first)
                first += steps
        if norms_of(self.judged) and not self.config.phases[-1].frozen_statistics:
            self._calibrate(self.judged, self.config.phases[-1])
        path = self.folder / f"{self._model_name}.safetensors"
        if self.processes.first:
            save_model(self.judged, self._description(self.validate()), path)
            self.log.draw()
        self.processes.wait()
        return path

    def _run_phase(self, number: int, first: int) -> None:
        phase, steps = self.config.phases[number], self.phase_steps[number]
        images = self._maker(phase, self.random)
        textures = BlockMaker(
            self.textures, self.architecture.block_shape(phase.block_size), self.voxel_size, self.random
        )
        if phase.frozen_statistics and self.step == first:
            self._calibrate(self.network, phase)
        started, losses = time.perf_counter(), []
        while self.step < first + steps:
            if phase.texture_share and (not self.textures or self.step % _TEXTURE_STEPS == 0):
                self._new_texture()
            rate = self._learning_rate(phase, (self.step - first) / steps)
            blocks = [
                (textures if self.random.happens(phase.texture_share) else images).make(phase.fields, phase.appearance)
                for _ in range(phase.blocks)
            ]
            losses.append(self.learn(blocks, rate, phase))
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

    def _new_texture(self) -> None:
        """Make the texture of this part of the run; the same in a run that was interrupted."""
        seed = self.config.seed + self.step // _TEXTURE_STEPS + _SEED_STEP * self.processes.rank
        self.textures[:] = [Source.texture(_TEXTURE_SIZE, Random(seed, self.device), self.config.shown)]

    def _tell(self, loss: float, blocks_per_second: float, seconds: float) -> None:
        steps = sum(self.phase_steps)
        mean = self.seconds / self.step if self.step else seconds
        self.options.watch(
            TrainingProgress(self.step, steps, loss, self._last_error, blocks_per_second, mean * (steps - self.step))
        )

    def _maker(self, phase: Phase, random: Random) -> BlockMaker | PairBlocks:
        shape = self.architecture.block_shape(phase.block_size)
        return self.train_images.maker(shape, self.voxel_size, random, phase.pairs)

    @staticmethod
    def _learning_rate(phase: Phase, progress: float) -> float:
        start, end = phase.learning_rate
        rate = end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
        return rate / phase.decay ** int(progress * phase.epochs)

    def _model(self, network: nn.Module) -> Model:
        return Model(network, _bare_description(self.config), "")

    def learn(self, blocks: list[Block], rate: float, phase: Phase) -> tuple[float, float]:
        """Do one step of the optimiser.

        Parameters
        ----------
        blocks : list of Block
            On the trainer's device.
        rate : float
            Learning rate.
        phase : Phase
            Says what the step is like besides.

        Returns
        -------
        tuple of float
            The loss, and the mean error against the mean displacement.
        """
        if self.random.happens(phase.recurrence):
            blocks = [self._once_registered(block) for block in blocks]
        self.trained.train()
        if phase.frozen_statistics:
            for norm in norms_of(self.network):
                norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        predicted = predict_blocks(self._model(self.trained), blocks, self.precision)
        u, weight = truth_at_outputs(self.architecture, blocks)
        loss = self.architecture.loss(predicted, u, weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        error, magnitude = (v.norm(dim=1).mean() for v in (predicted[-1].detach().float() - u, u))
        return float(loss.detach()), float(error / magnitude.clamp(min=1e-3))

    def _once_registered(self, block: Block) -> Block:
        """Return the pair that the network's own result leaves: the moving image warped by it, and what is left.

        With T(x) = x + u(x) the truth and P(x) = x + p(x) predicted, v is wanted with P(x + v(x)) = T(x).
        """
        with torch.no_grad():
            self.network.eval()
            p = predict_blocks(self._model(self.network), [block], self.precision)[-1].float()
            v = block.displacement - p
            for _ in range(4):  # p changes by far less than 1 mm a mm: this converges
                v = block.displacement - warp(p, v / self.voxel_size)
            return Block(block.fixed, warp(block.moving, p / self.voxel_size), v, block.weight)

    def validate(self, during: Phase | None = None) -> Validation:
        """Measure the network on pairs of the validation images, always the same ones.

        While batch normalisation learns, its running statistics lag behind the weights; `during` is the phase whose
        blocks then give the statistics to measure with. Training goes on with its own.
        """
        if during is None or not norms_of(self.judged) or during.frozen_statistics:
            return self._validated()
        with own_statistics_kept(self.judged):
            random = Random(self.config.seed + 2, self.device)
            self._gather_statistics(self.judged, during, _QUICK_CALIBRATION_STEPS, random)
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
        return blocks.measure(self._model(self.judged), self.precision)

    def _calibrate(self, network: nn.Module, phase: Phase) -> None:
        """Average the statistics of batch normalisation over fresh blocks: the running ones lag behind."""
        self._gather_statistics(network, phase, _CALIBRATION_STEPS, self.random)
        self.processes.same_weights(network)

    def _gather_statistics(self, network: nn.Module, phase: Phase, steps: int, random: Random) -> None:
        maker = self._maker(phase, random)
        batches = ([maker.make(phase.fields, phase.appearance) for _ in range(phase.blocks)] for _ in range(steps))
        gather_statistics(self._model(network), batches, self.precision)

    def _log(self, phase: int, rate: float, training: FloatArray) -> None:
        if not self.processes.first:
            return
        found = self.validate(during=self.config.phases[phase])
        self._last_error = found.error
        loss, left = (float(v) for v in training)
        row = LogRow(self.step, phase, self.seconds, rate, loss, left, found.error, *found.per_axis, found.displacement)
        self.log.append(row)
        self.log.draw()
        self.options.say(row.line())

    @property
    def _model_name(self) -> str:
        return self.config.name or self.config.network

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save_checkpoint(self) -> None:
        random = self.processes.gathered(self.random.state())
        if self.processes.first:
            state = (self.module.state_dict(), self.optimiser.state_dict(), random, self.step, self.seconds)
            averaged = self.averaged.state_dict() if self.averaged is not None else {}
            Checkpoint(self.config.network, *state, averaged).write(self._checkpoint_path)

    def _load_checkpoint(self) -> None:
        found = Checkpoint.read(self._checkpoint_path, self.config.network)
        self.module.load_state_dict(found.weights)
        self.optimiser.load_state_dict(found.optimiser)
        if self.averaged is not None and found.averaged:
            self.averaged.load_state_dict(found.averaged)
        self.random.restore(found.random[self.processes.rank % len(found.random)])
        self.step, self.seconds = found.step, found.seconds

    def _description(self, validation: Validation) -> ModelDescription:
        last = self.config.phases[-1].fields
        bare = dataclasses.replace(_bare_description(self.config), name=self._model_name)
        threads = f"{self.processes.count} process(es), {torch.get_num_threads()} thread(s)"
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        training = {
            "recipe": dataclasses.asdict(self.config),
            "seconds": round(self.seconds),
            "steps": self.step,
            "machine": f"{platform.machine()}, {threads}, {device}, {str(self.precision).removeprefix('torch.')}",
            "torch": str(torch.__version__),
        }
        if self._start:
            training["started_from"] = self._start
        accuracy = {
            "validation": {
                "images": list(self.config.validation),
                "pairs": "blocks of the recipe's own pairs",
                f"inside the {self.config.shown.trained_in}": {
                    "all": {
                        "mean_displacement_mm": round(validation.displacement, 3),
                        "mean_error_mm": round(validation.error, 3),
                        "mean_absolute_mm": [round(part, 3) for part in validation.per_axis],
                    }
                },
            }
        }
        capture = max(last.theta[1], last.breathing, last.even if last.even_share else 0.0)
        if self.config.phases[-1].pairs:
            capture = max(frequency.theta for frequency in FREQUENCIES.values())
        return dataclasses.replace(bare, capture_range=capture, training=training, accuracy=accuracy)


def _bare_description(config: TrainingConfig) -> ModelDescription:
    voxel_size = find_architecture(config.network).voxel_size
    return ModelDescription(config.network, config.network, voxel_size, config.shown, 0.0)


def _effort(description: ModelDescription) -> dict[str, Any]:
    return {key: description.training.get(key) for key in ("steps", "seconds", "machine", "started_from")}
