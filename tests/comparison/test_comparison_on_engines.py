"""Comparisons of several pairs at a time: the same as one after the other, here, on Dask and in parts."""

from __future__ import annotations

import csv
import importlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from command import call
from listening import Heard
from shifted_pairs import TRUE, make_pairs, runs, shift

from regnet_itk.child_processes import Failed
from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.tables import collect_error_rows
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.pairs import write_pairs

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def pairs(tmp_path):
    first, second = make_pairs(tmp_path / "data")
    return [first, second, replace(first, name="p2")]


def methods_of(log):
    common = shift(log, 1.0, 0, 0)
    return [Method("a", (common,), ("s0",)), Method("b", (common, shift(log, *(TRUE - (1, 0, 0)))), ("s0", "s1"))]


def of_dask(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    return importlib.import_module("regnet_itk.engines.dask_engine").DaskEngine("local", 2)


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_an_engine_finds_the_same(pairs, tmp_path, monkeypatch, kind):
    alone = compare(pairs, methods_of(tmp_path / "log"), tmp_path / "alone")
    engine, heard = LocalEngine(2) if kind == "processes" else of_dask(monkeypatch), Heard()
    found = compare(pairs, methods_of(tmp_path / "log2"), tmp_path / "together", engine=engine, events=heard)
    assert not found.failures
    assert collect_error_rows(found) == collect_error_rows(alone)
    assert runs(tmp_path / "log2") == 3 * 2  # the first stage of both methods runs once a pair
    assert sum(line.startswith("p") for line in heard.lines) == 3 * 3
    shares = [now.fraction for now in heard.progresses]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    again = compare(pairs, methods_of(tmp_path / "log2"), tmp_path / "together", engine=engine)
    assert runs(tmp_path / "log2") == 6
    assert collect_error_rows(again) == collect_error_rows(alone)


def test_a_stage_that_ends_its_process_costs_its_method_alone(pairs, tmp_path):
    deadly = Method("dies", (shift(tmp_path / "log", What="die"),), ("s0",))
    good = Method("good", (shift(tmp_path / "log", *TRUE),), ("s1",))
    found = compare(pairs[:2], [good, deadly], tmp_path / "out", engine=LocalEngine(2))
    assert [(pair.name, method.name) for pair, method, _ in found.failures] == [(f"p{n}", "dies") for n in range(2)]
    assert "its process ended with the status 7" in found.failures[0][2]


def test_a_pair_that_cannot_be_sent_back_is_told(pairs, tmp_path):
    class Breaks(LocalEngine):
        def run(self, work, tasks, hear):
            for task, said in super().run(work, tasks, hear):
                yield task, Failed("its process ended with the status -9") if task.pair.name == "p1" else said

    found = compare(pairs[:2], methods_of(tmp_path / "log")[:1], tmp_path / "out", engine=Breaks(1))
    assert {pair.name for pair, _, _ in found.failures} == {"p1"}
    assert len(found.failures) == 2  # of the pair as it is, and of the method


def test_the_command_does_parts_and_then_the_whole(pairs, tmp_path, capfd):
    write_pairs([replace(pair, fixed_mask=None, moving_mask=None) for pair in pairs[:2]], tmp_path / "pairs.csv")
    words = ("compare", tmp_path / "pairs.csv", "-out", tmp_path / "out", "--methods", "rigid", "-threads", 1)
    assert call(*words, "--part", "2/2") == 0
    assert "this part is in" in capfd.readouterr().err
    assert [folder.name for folder in (tmp_path / "out" / "pairs").iterdir()] == ["p1"]
    assert not (tmp_path / "out" / "table.csv").exists()
    assert call(*words, "--jobs", 2) == 0
    told = capfd.readouterr().err
    assert "p1: affine+rigid: kept" in told
    with (tmp_path / "out" / "measures.csv").open(encoding="utf-8") as file:
        assert {row["pair"] for row in csv.DictReader(file)} == {"p0", "p1"}
    assert call(*words, "--part", "3/2") == 1
    assert "there is no part 3 of 2" in capfd.readouterr().err
