"""Training throughput of RegNet: blocks of neighbouring outputs against the paper's single patches, in one run.

``python pipelines/benchmark_training.py [FOLDER]`` times steps of the optimiser on the images of FOLDER, or on two
digital phantoms. A row is a shape of a step: so many blocks of so many outputs (1^3 is the patch of 54 voxels). The
rows take turns, one step each, so that what else the machine does meets them alike; the median step is told, once
with the blocks made already ("learn") and once with making them ("with blocks").

Outputs a second flatter large blocks: neighbouring outputs, 2 mm apart, have nearly the same displacement. What a
network can learn from are displacements that are independent of each other. A random field smoothed by a Gaussian of
standard deviation sigma has the autocorrelation exp(-d^2 / (4 sigma^2)), whose integral, 2 sqrt(pi) sigma, is the
distance over which it is independent. A block whose outputs span L = 2 mm x (outputs along an edge) so shows
max(1, L / (2 sqrt(pi) sigma))^3 of them, and never more than it has outputs. It counts displacements only: single
patches come from as many places of as many images, which blocks do not, and this says nothing of that. The wave of
sigma 6 mm is of the first, short-waved phases of a curriculum; 25 mm is the paper's medium frequency.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import RegNetItkError
from regnet_itk.training.blocks import Block, BlockMaker
from regnet_itk.training.config import FieldRecipe, Phase, TrainingConfig
from regnet_itk.training.loop import Trainer, TrainingOptions
from regnet_itk.training.sources import divide_images

SHAPES = ((64, 1), (8, 2), (8, 4), (4, 8), (2, 10), (1, 16))
"""Blocks in a step, and outputs along an edge of a block; the first row is what the others are compared with."""
SIGMAS = (6.0, 25.0)
OUTPUT_DISTANCE = 2.0  # mm


def independent(outputs: int, sigma: float) -> float:
    """Return how many independent displacements a block of outputs^3 shows in a field smoothed by sigma mm."""
    edge = OUTPUT_DISTANCE * outputs / (2 * math.sqrt(math.pi) * sigma)
    return min(max(1.0, edge), outputs) ** 3


@dataclass
class Row:
    """A shape of a step, blocks of edge^3 voxels, and what its steps took."""

    phase: Phase
    edge: int
    maker: BlockMaker
    making: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)

    def step(self, trainer: Trainer, clock: Callable[[], float]) -> None:
        """Do one step and note its seconds."""
        started = clock()
        blocks: list[Block] = [
            self.maker.make(self.phase.fields, self.phase.appearance) for _ in range(self.phase.blocks)
        ]
        made = clock()
        trainer.learner.learn(blocks, 1e-4, self.phase)
        self.making.append(made - started)
        self.learning.append(clock() - made)

    @property
    def name(self) -> str:
        """The shape in words."""
        return f"{self.phase.blocks} x {self.phase.block_size}^3"

    @property
    def seconds(self) -> tuple[float, float]:
        """Median of a step: learning alone, and with making the blocks."""
        both = [a + b for a, b in zip(self.making, self.learning, strict=True)]
        return statistics.median(self.learning), statistics.median(both)

    def shown(self) -> list[float]:
        """Return what a step shows: outputs, and independent displacements for each sigma."""
        size = self.phase.block_size
        return [self.phase.blocks * n for n in (float(size**3), *(independent(size, sigma) for sigma in SIGMAS))]


def _clock(device: torch.device, cpu_time: bool) -> Callable[[], float]:
    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return time.process_time if cpu_time else finished


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table; ratios are to the first row, per second with making the blocks."""
    shown = ["outputs", *(f"independent, sigma {sigma:g} mm" for sigma in SIGMAS)]
    header = ["blocks x outputs", "voxels", "learn, s", "with blocks, s", *(f"{name}, /s" for name in shown), "ratios"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    first = [value / rows[0].seconds[1] for value in rows[0].shown()]
    for row in rows:
        learn, whole = row.seconds
        rates = [value / whole for value in row.shown()]
        ratios = " / ".join(f"{rate / base:.2f}" for rate, base in zip(rates, first, strict=True))
        cells = [row.name, f"{row.edge}^3", f"{learn:.2f}", f"{whole:.2f}", *(f"{rate:.3g}" for rate in rates), ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def measure(images: Path, folder: Path, steps: int, device: str, cpu_time: bool) -> list[Row]:
    """Time `steps` steps of every shape, after one that warms up."""
    fields = FieldRecipe(sigma=(6.0, 25.0), theta=(1.0, 8.0), strain=0.4)
    phases = tuple(Phase(steps=1, blocks=blocks, block_size=size, fields=fields) for blocks, size in SHAPES)
    config = divide_images(TrainingConfig("regnet", phases=phases, auxiliary_outputs=False), images)
    trainer = Trainer(config, images, folder, TrainingOptions(device))
    rows = []
    for phase in phases:
        shape = trainer.architecture.block_shape(phase.block_size)
        maker = BlockMaker(trainer.train_images.sources, shape, trainer.config.working_voxel_size, trainer.random)
        rows.append(Row(phase, shape[0], maker))
    clock = _clock(trainer.device, cpu_time)
    for number in range(steps + 1):
        for row in rows:
            row.step(trainer, clock)
            if number == 0:
                row.making.clear()
                row.learning.clear()
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, metavar="FOLDER", help="two images or more; phantoms otherwise")
    parser.add_argument("--steps", type=int, default=5, help="steps of each shape; 5 by default")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the processor's seconds, for one thread on a CPU that others use too"
    )
    given = parser.parse_args()
    if given.steps < 1 or (given.threads is not None and given.threads < 1):
        parser.error("--steps and --threads are at least 1")
    if given.cpu_time and (given.threads != 1 or given.device != "cpu"):
        parser.error("--cpu-time needs --threads 1 --device cpu: it sums the seconds of all threads, and knows no GPU")
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        images = given.images or Path(temporary)
        if given.images is None:
            phantom = make_phantom(0, spacing=(2.0, 2.0, 2.0))
            write_image(phantom.fixed, images / "fixed.mha")
            write_image(phantom.moving, images / "moving.mha")
        try:
            rows = measure(images, Path(temporary) / "run", given.steps, given.device, given.cpu_time)
        except RegNetItkError as error:
            sys.exit(f"error: {error}")
    seconds = "processor's seconds" if given.cpu_time else "seconds"
    print(f"RegNet, {torch.get_num_threads()} thread(s), {seconds}, median of {given.steps} steps; ratios to row 1:")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
