"""What is told while a training runs."""

from __future__ import annotations

from dataclasses import dataclass

from regnet_itk.events import Events


@dataclass(frozen=True)
class TrainingStep:
    """How far a training is after a step.

    Parameters
    ----------
    step, steps : int
        How many are done, and how many there are.
    loss : float
    validation : float or None
        Error of the last validation, mm.
    blocks_per_second : float
    seconds_left : float
    """

    step: int
    steps: int
    loss: float
    validation: float | None
    blocks_per_second: float
    seconds_left: float


class TrainingEvents(Events):
    """Hears what a training tells; derive from it to listen. A line for each validation goes to `log`."""

    def step_done(self, now: TrainingStep) -> None:
        """Hear how far the training is."""
