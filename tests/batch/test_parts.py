"""Which pairs a task of a job array does."""

from __future__ import annotations

import pytest

from regnet_itk.engines.parts import Part, find_part
from regnet_itk.errors import ParameterError


def slurm(index, first, last, step=1, count=None):
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    values = (index, first, last, step, (last - first) // step + 1 if count is None else count)
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, values, strict=True)}


def test_the_parts_are_the_whole_each_pair_once():
    for count in (1, 2, 3, 7, 12):
        parts = [Part(number, count).of(range(10)) for number in range(1, count + 1)]
        assert sorted(n for part in parts for n in part) == list(range(10))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "x/3", "-1/3", "1/3/4", ""])
def test_what_is_no_part(text):
    with pytest.raises(ParameterError, match="give `part` as K/N"):
        Part.parse(text)
    assert Part.parse(" 2/3 ") == Part(2, 3)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, None),
        (slurm(0, 0, 9), Part(1, 10)),
        (slurm(9, 0, 9), Part(10, 10)),
        (slurm(7, 3, 11, 4), Part(2, 3)),
        ({"SGE_TASK_ID": "undefined"}, None),
        ({"SGE_TASK_ID": "5", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}, Part(3, 5)),
        ({"LSB_JOBINDEX": "0"}, None),
        ({"LSB_JOBINDEX": "4", "LSB_JOBINDEX_END": "6", "LSB_JOBINDEX_STEP": "1"}, Part(4, 6)),
    ],
)
def test_what_a_job_array_says(environment, part):
    assert find_part(environment) == part


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PBS_ARRAY_INDEX": "3"}, r"does not tell how many .* \$PBS_ARRAY_INDEX/N"),
        ({"PBS_ARRAYID": "3"}, r"\$PBS_ARRAYID/N"),
        (slurm(7, 3, 9, 1, count=3), "have gaps"),
    ],
)
def test_what_a_job_array_does_not_say(environment, told):
    with pytest.raises(ParameterError, match=told):
        find_part(environment)
