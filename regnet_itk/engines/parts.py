"""Which pairs a task of a job array does: part K of N."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from regnet_itk.errors import ParameterError

_Any = TypeVar("_Any")

_SHAPE = "give `part` as K/N, such as 3/20, or none for the table and the page alone"


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `count`.

    Raises
    ------
    ParameterError
        If there is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ParameterError(f"there is no part {self.number} of {self.count}: parts are counted from 1; {_SHAPE}")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "K/N".

        Raises
        ------
        ParameterError
            If it is none.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None:
            raise ParameterError(f"'{text}' is no part of the pairs; {_SHAPE}")
        return cls(int(found[1]), int(found[2]))

    def of(self, pairs: Sequence[_Any]) -> Sequence[_Any]:
        """Return this part of a list: every N-th, as neighbours in a list are often alike in size."""
        return pairs[self.number - 1 :: self.count]


@dataclass(frozen=True)
class _Array:
    """How a batch system tells a task of a job array which one it is, and of how many."""

    name: str
    index: str
    first: str = ""
    last: str = ""
    step: str = ""
    count: str = ""


_ARRAYS = (
    _Array(
        "SLURM", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP",
        "SLURM_ARRAY_TASK_COUNT",
    ),
    _Array("Grid Engine", "SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    _Array("LSF", "LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
    _Array("PBS", "PBS_ARRAY_INDEX"),
    _Array("Torque", "PBS_ARRAYID"),
)  # fmt: skip


def find_part(environment: Mapping[str, str]) -> Part | None:
    """Return the part that a job array's task is to do; None outside of one.

    Parameters
    ----------
    environment : mapping
        The variables of the environment.

    Raises
    ------
    ParameterError
        If the batch system does not tell how many tasks there are, or their numbers have gaps.
    """
    for array in _ARRAYS:
        index = environment.get(array.index, "")
        if index.isdigit() and not (array.name == "LSF" and int(index) == 0):  # which means that it is no array
            return _part(array, int(index), environment)
    return None


def _part(array: _Array, index: int, environment: Mapping[str, str]) -> Part:
    def number(name: str, default: int | None) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else default

    first, step, last = number(array.first, 1), number(array.step, 1) or 1, number(array.last, None)
    if first is None or last is None:
        raise ParameterError(
            f"this is a task of a job array of {array.name}, which does not tell how many there are: give `part` as "
            f"${array.index}/N, with tasks counted from 1"
        )
    count = (last - first) // step + 1
    if number(array.count, count) != count:
        raise ParameterError(
            f"the numbers of this job array of {array.name} have gaps: number its tasks 1-N, or give `part` as K/N"
        )
    return Part((index - first) // step + 1, count)
