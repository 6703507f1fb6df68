"""The log of a training run: a CSV file, and a picture of it."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path

from regnet_itk.outputs import write_whole


@dataclass(frozen=True)
class LogRow:
    """What is known after a number of steps; errors are means inside the region of the validation pairs, in mm."""

    step: int
    phase: int
    seconds: float
    learning_rate: float
    loss: float
    share_left: float
    """Mean error of the training blocks, against their mean displacement."""
    error_mm: float
    error_x_mm: float
    error_y_mm: float
    error_z_mm: float
    displacement_mm: float

    def line(self) -> str:
        """Return the row in words."""
        return (
            f"step {self.step} (phase {self.phase}, {self.seconds:.0f} s): loss {self.loss:.3f}, "
            f"{self.share_left:.3f} left, validation error {self.error_mm:.3f} mm "
            f"({self.error_x_mm:.2f}, {self.error_y_mm:.2f}, {self.error_z_mm:.2f}) of {self.displacement_mm:.3f} mm "
            f"= {self.error_mm / max(self.displacement_mm, 1e-6):.3f}"
        )


class TrainingLog:
    """Rows in ``log.csv`` of a folder, drawn in ``log.png``.

    Parameters
    ----------
    folder : Path
    place : str
        Where the errors were measured, in a word that follows "the".
    """

    def __init__(self, folder: Path, place: str = "lungs") -> None:
        self.place = place
        self.path, self.picture = folder / "log.csv", folder / "log.png"

    def append(self, row: LogRow) -> None:
        """Add a row.

        Raises
        ------
        OutputError
            If it cannot be written; the log is then as it was.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if not self.path.exists():
            writer.writerow([f.name for f in fields(LogRow)])
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in astuple(row)])
        before = self.path.read_bytes() if self.path.exists() else b""
        write_whole(self.path, lambda part: part.write_bytes(before + text.getvalue().encode()))

    def rows(self) -> list[LogRow]:
        """Read all rows."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))[1:]
        return [LogRow(int(step), int(phase), *map(float, rest)) for step, phase, *rest in lines]

    def forget_after(self, step: int) -> None:
        """Remove what the log says about steps that are yet to come: they were done after the last checkpoint."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        steps = [line.partition(b",")[0] for line in lines]
        kept = [line for line, at in zip(lines, steps, strict=True) if at.isdigit() and int(at) <= step]
        if kept:
            write_whole(self.path, lambda part: part.write_bytes(b"".join([lines[0], *kept])))
        else:
            self.path.unlink()

    def draw(self) -> None:
        """Draw the loss and the validation error against the steps."""
        from matplotlib.figure import Figure

        rows = self.rows()
        if len(rows) < 2:
            return
        figure = Figure(figsize=(7.0, 5.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        steps = [row.step for row in rows]
        upper.plot(steps, [row.loss for row in rows], color="#0072B2")
        upper.set_ylabel("training loss")
        lower.plot(steps, [row.error_mm for row in rows], color="#D55E00", label="error")
        lower.plot(steps, [row.displacement_mm for row in rows], color="#777777", ls="--", label="nothing predicted")
        lower.set(xlabel="step", ylabel=f"validation, mm in the {self.place}", ylim=(0, None))
        lower.legend(frameon=False)
        for axes in (upper, lower):
            for before, after in pairwise(rows):
                if after.phase != before.phase:
                    axes.axvline(before.step, color="#bbbbbb", lw=0.8)
        write_whole(self.picture, lambda part: figure.savefig(part, dpi=120))
