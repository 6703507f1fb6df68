"""The training loop: blocks made on the fly, validation, log, and checkpoints that training continues from."""

from __future__ import annotations

import csv
import dataclasses
import math
import pickle
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.errors import ImageError, ModelError
from regnet_itk.geometry import FloatArray
from regnet_itk.images import IMAGE_SUFFIXES, read_image
from regnet_itk.lungs import lung_mask
from regnet_itk.model import Model, ModelDescription, make_network, save_model
from regnet_itk.network import BLOCK_OVERHEAD, PATCH_MARGIN, RegNet
from regnet_itk.outputs import write_whole
from regnet_itk.training.blocks import Block, BlockMaker, Source
from regnet_itk.training.config import Phase, TrainingConfig

INTENSITY_RANGE = (-1000.0, 200.0)
VOXEL_SIZE = {"regnet": 1.0, "coarse_to_fine": 2.0}
_REGION = {"regnet": "lungs", "coarse_to_fine": "body"}  # RegNet's small blocks hold little else than lungs
_TEXTURE_SIZE = 160
_VALIDATION_BLOCKS = 12
_CALIBRATION_STEPS = 30
_LOG_COLUMNS = ("step", "phase", "seconds", "learning_rate", "loss", "share_left", "error_mm", "displacement_mm")


def find_images(folder: str | Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of the named images in a folder.

    Raises
    ------
    ImageError
        If one is not there.
    """
    found = {}
    for name in names:
        paths = [Path(folder) / (name + suffix) for suffix in IMAGE_SUFFIXES]
        there = [path for path in paths if path.exists()]
        if not there:
            raise ImageError(f"training image '{name}' is not in '{folder}' ({', '.join(IMAGE_SUFFIXES)})")
        found[name] = there[0]
    return found


def load_source(path: Path) -> Source:
    """Read a CT, find its lungs, and make a :class:`Source` of both."""
    image = read_image(path, "training image")
    return Source.from_image(image, lung_mask(image))


class DeepSupervision(nn.Module):
    """RegNet with two auxiliary outputs, from the merged features of either resolution, for training only.

    They bring the error straight to the layers that must learn to match, which otherwise stay on a plateau.
    """

    def __init__(self, network: RegNet) -> None:
        super().__init__()
        self.network = network
        self.fine_head = nn.Conv3d(30, 3, 1)
        self.coarse_head = nn.Conv3d(30, 3, 1)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the displacements of the network and of both auxiliary outputs, the network's own last."""
        fine, coarse = self.network.features(fixed, moving)
        merged = self.network.merged(torch.cat([fine, coarse], dim=1))
        inside = (..., *(slice(4, -4),) * 3)
        own = self.network.displacement(self.network.dense(merged))
        return [self.fine_head(fine[inside]), self.coarse_head(coarse[inside]), own]


class Trainer:
    """Train one network as its configuration says.

    Parameters
    ----------
    config : TrainingConfig
    images : str or Path
        Folder of the images that the configuration names.
    folder : str or Path
        Where checkpoints, the log and the model go; created if needed.
    say : callable
        Takes the lines that tell how far training is.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: str | Path,
        folder: str | Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.folder, self.say = config, Path(folder), say
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = find_images(images, (*config.train, *config.validation))
        self.train_sources = [load_source(paths[name]) for name in config.train]
        self.validation_sources = [load_source(paths[name]) for name in config.validation]
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.voxel_size = VOXEL_SIZE[config.network]
        self.network = make_network(config.network, self.voxel_size)
        inner = self.network
        self.trained: nn.Module = DeepSupervision(inner) if isinstance(inner, RegNet) else inner
        self.trained.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), lr=1e-3, weight_decay=1e-5)
        self.step, self.seconds = 0, 0.0
        self.textures: list[Source] = []

    def run(self, resume: bool = True) -> Path:
        """Train through all phases and return the path of the model.

        With `resume`, continue from the checkpoint in the folder if there is one.

        Raises
        ------
        ModelError
            If the checkpoint is damaged or of another network.
        """
        if resume and self._checkpoint_path.exists():
            self._load_checkpoint()
        self._forget_later_log()
        first = 0
        for number, phase in enumerate(self.config.phases):
            if self.step < first + phase.steps:
                self._run_phase(number, phase, first)
            first += phase.steps
        if isinstance(self.network, RegNet) and not self.config.phases[-1].frozen_statistics:
            self._calibrate(self.config.phases[-1])
        path = self.folder / f"{self._model_name}.safetensors"
        save_model(self.network, self._description(self.validate(self.config.phases[-1])), path)
        return path

    def _run_phase(self, number: int, phase: Phase, first: int) -> None:
        images = self._maker(self.train_sources, phase)
        textures = self._maker(self.textures, phase)
        if phase.frozen_statistics and self.step == first:
            self._calibrate(phase)
        started, losses = time.perf_counter(), []
        while self.step < first + phase.steps:
            if phase.texture_share and (not self.textures or self.step % 50 == 0):
                self.textures[:] = [Source.texture(_TEXTURE_SIZE, self.generator)]
            rate = self._learning_rate(phase, (self.step - first) / phase.steps)
            blocks = [
                (textures if self._uniform() < phase.texture_share else images).make(phase.fields, phase.appearance)
                for _ in range(phase.blocks)
            ]
            losses.append(self._learn(blocks, rate, phase.frozen_statistics))
            self.step += 1
            self.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if self.step % self.config.validate_every == 0:
                self._log(number, rate, np.mean(losses, axis=0), self.validate(phase))
                losses.clear()
            if self.step % self.config.checkpoint_every == 0:
                self._save_checkpoint()

    def _maker(self, sources: list[Source], phase: Phase, generator: torch.Generator | None = None) -> BlockMaker:
        overhead = BLOCK_OVERHEAD if isinstance(self.network, RegNet) else 0
        edge = overhead + phase.block_size * (2 if overhead else 1)
        return BlockMaker(sources, (edge, edge, edge), self.voxel_size, generator or self.generator)

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator))

    @staticmethod
    def _learning_rate(phase: Phase, progress: float) -> float:
        start, end = phase.learning_rate
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    def _predict(self, network: nn.Module, blocks: list[Block]) -> Any:
        fixed, moving = (torch.cat([getattr(b, name) for b in blocks]) for name in ("fixed", "moving"))
        normalise = Model(network, _bare_description(self.config.network), "").normalise
        with torch.autocast("cpu", torch.bfloat16):
            return network(normalise(fixed), normalise(moving))

    def _truth(self, blocks: list[Block]) -> tuple[Tensor, Tensor]:
        """Return u and the lungs' weight at the finest outputs."""
        u = torch.cat([b.displacement for b in blocks])
        weight = torch.cat([b.weight for b in blocks])
        if isinstance(self.network, RegNet):
            at = (..., *(slice(PATCH_MARGIN, -PATCH_MARGIN + 1, 2),) * 3)
            return u[at], weight[at]
        return u, weight

    def _learn(self, blocks: list[Block], rate: float, frozen_statistics: bool) -> tuple[float, float]:
        self.trained.train()
        if frozen_statistics:
            for norm in self._norms():
                norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        predicted = self._predict(self.trained, blocks)
        u, weight = self._truth(blocks)
        if isinstance(self.network, RegNet):
            loss = _regnet_loss(predicted, u)
        else:
            loss = _coarse_to_fine_loss(predicted, u, weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimiser.step()
        error, magnitude = (v.norm(dim=1).mean() for v in (predicted[-1].detach().float() - u, u))
        return float(loss.detach()), float(error / magnitude)

    def validate(self, phase: Phase) -> tuple[float, float]:
        """Return the mean error and the mean displacement in mm inside the lungs of the validation images.

        The pairs are drawn as in `phase`, always the same ones.
        """
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        maker = self._maker(self.validation_sources, phase, generator)
        error = magnitude = total = 0.0
        self.network.eval()
        for _ in range(_VALIDATION_BLOCKS):
            block = [maker.make(phase.fields, phase.appearance)]
            with torch.no_grad():
                predicted = self._predict(self.network, block)
            last = predicted if isinstance(predicted, Tensor) else predicted[-1]
            u, weight = self._truth(block)
            error += float(((last.float() - u).norm(dim=1, keepdim=True) * weight).sum())
            magnitude += float((u.norm(dim=1, keepdim=True) * weight).sum())
            total += float(weight.sum())
        return error / total, magnitude / total

    def _norms(self) -> list[nn.BatchNorm3d]:
        return [m for m in self.network.modules() if isinstance(m, nn.BatchNorm3d)]

    def _calibrate(self, phase: Phase) -> None:
        """Average the statistics of batch normalisation over fresh blocks: the running ones lag behind."""
        norms = self._norms()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        self.network.train()
        maker = self._maker(self.train_sources, phase)
        for _ in range(_CALIBRATION_STEPS):
            with torch.no_grad():
                self._predict(self.network, [maker.make(phase.fields, phase.appearance) for _ in range(phase.blocks)])
        for norm in norms:
            norm.momentum = 0.1
        self.network.eval()

    def _log(self, phase: int, rate: float, training: FloatArray, validation: tuple[float, float]) -> None:
        (loss, left), (error, magnitude) = training, validation
        row = [
            self.step,
            phase,
            f"{self.seconds:.0f}",
            f"{rate:.2e}",
            f"{loss:.4f}",
            f"{left:.4f}",
            f"{error:.4f}",
            f"{magnitude:.4f}",
        ]
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(_LOG_COLUMNS)
            writer.writerow(row)
        self.say(
            f"step {self.step} (phase {phase}, {self.seconds:.0f} s): loss {loss:.3f}, {left:.3f} left, validation "
            f"error {error:.3f} mm of {magnitude:.3f} mm = {error / max(magnitude, 1e-6):.3f}"
        )

    @property
    def _model_name(self) -> str:
        return self.config.name or self.config.network

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _save_checkpoint(self) -> None:
        state = {
            "trained": self.trained.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_whole(self._checkpoint_path, lambda part: torch.save(state, part))
        self.textures.clear()  # a continued run has to draw one, so this one does as well

    def _load_checkpoint(self) -> None:
        path = self._checkpoint_path
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            raise ModelError(f"checkpoint '{path}' is damaged; remove it to begin anew") from None
        try:
            self.trained.load_state_dict(state["trained"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.generator.set_state(state["generator"])
            self.step, self.seconds = state["step"], state["seconds"]
        except (RuntimeError, KeyError, TypeError, ValueError):
            raise ModelError(
                f"checkpoint '{path}' is not of the network '{self.config.network}'; train in another folder"
            ) from None

    def _forget_later_log(self) -> None:
        """Remove what the log says about steps that are yet to come: they were done after the last checkpoint."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        rows = path.read_bytes().splitlines(keepends=True)
        steps = [row.partition(b",")[0] for row in rows]
        kept = [row for row, step in zip(rows, steps, strict=True) if step.isdigit() and int(step) <= self.step]
        if kept:
            write_whole(path, lambda part: part.write_bytes(b"".join([rows[0], *kept])))
        else:
            path.unlink()

    def _description(self, validation: tuple[float, float]) -> ModelDescription:
        last = self.config.phases[-1].fields
        bare = dataclasses.replace(_bare_description(self.config.network), name=self._model_name)
        training = {
            "recipe": dataclasses.asdict(self.config),
            "seconds": round(self.seconds),
            "steps": self.step,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU, bfloat16",
            "torch": str(torch.__version__),
        }
        error, magnitude = validation
        accuracy = {"validation": {"mean_error_mm": round(error, 3), "mean_displacement_mm": round(magnitude, 3)}}
        capture = max(last.theta[1], last.breathing)
        return dataclasses.replace(bare, capture_range=capture, training=training, accuracy=accuracy)


def _bare_description(network: str) -> ModelDescription:
    return ModelDescription(network, network, VOXEL_SIZE[network], INTENSITY_RANGE, 0.0, region=_REGION[network])


def _regnet_loss(outputs: list[Tensor], u: Tensor) -> Tensor:
    """Return the mean absolute error, with a part of that of the auxiliary outputs."""
    fine, coarse, own = ((output.float() - u).abs().mean() for output in outputs)
    return own + 0.3 * coarse + 0.2 * fine


def _coarse_to_fine_loss(levels: list[Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """Sum the mean error of all levels, mostly inside the lungs."""
    weight = weight + 0.15
    total = torch.zeros(())
    shares = [0.25, 0.5, 1.0, 1.0]
    for share, predicted in zip(shares[-len(levels) :], levels, strict=True):
        factor = u.shape[-1] // predicted.shape[-1]
        truth, at = (functional.avg_pool3d(t, factor) if factor > 1 else t for t in (u, weight))
        error = ((predicted - truth).square().sum(dim=1, keepdim=True) + 1e-3).sqrt()
        total = total + share * (error * at).sum() / at.sum()
    return total
