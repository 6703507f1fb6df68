"""Batches on Dask: the same to the bit as here, and no pair lost or done twice when workers die."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from batch_program import wait_for
from command import call
from shifted_pairs import TRUE, make_pairs, runs, shift

from regnet_itk.batch.run import plan_batch, run_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.pairs import write_pairs

distributed = pytest.importorskip("distributed")
dask_engine = importlib.import_module("regnet_itk.engines.dask_engine")
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def pairs(tmp_path):
    first, second = make_pairs(tmp_path / "data")
    return [replace(first, fixed_mask=None), second]


def program(*words):
    """Start one of Dask's programs, whose workers know the tests' stage."""
    paths = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "distributed.cli." + words[0], *map(str, words[1:])]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL)


def start_worker(folder):
    return program("dask_worker", "--scheduler-file", folder / "s.json", "--nthreads", 1, "--local-directory", folder)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers in processes of their own; yields the address, the workers and what starts one."""
    started = [program("dask_scheduler", "--scheduler-file", tmp_path / "s.json", "--port", 0, "--no-dashboard")]
    started += [start_worker(tmp_path) for _ in range(2)]
    wait_for((tmp_path / "s.json").is_file)
    with distributed.Client(scheduler_file=str(tmp_path / "s.json")) as client:
        client.wait_for_workers(2, timeout=60)
        yield client
    for process in started:
        process.terminate()
    for process in started:
        process.wait()


def images_and_transforms(out):
    """Return the contents of all files but those that hold times."""
    files = [file for file in sorted((out / "pairs").rglob("*")) if file.suffix not in (".json", ".log", ".h5", "")]
    return {str(file.relative_to(out)): file.read_bytes().replace(bytes(out), b"OUT") for file in files}


def test_two_workers_give_the_same_to_the_bit(cluster, pairs, tmp_path):
    settings = BatchSettings((shift(tmp_path / "log", *TRUE, Warp="true"),))
    engines = {
        "one": LocalEngine(1),
        "two": LocalEngine(2),
        "dask": dask_engine.DaskEngine(cluster.scheduler.address),
    }
    found = {}
    for name, engine in engines.items():
        batch = run_batch(plan_batch(pairs, tmp_path / name, settings), engine)
        assert not batch.failed
        assert not batch.missing
        found[name] = images_and_transforms(tmp_path / name)
    assert {f"pairs/p1/{name}" for name in ("TransformParameters.0.txt", "result.0.zraw", "registration.png")} <= found[
        "one"
    ].keys()
    assert found["two"] == found["one"]
    assert found["dask"] == found["one"]


def test_a_worker_that_is_killed_costs_nothing_but_time(cluster, pairs, tmp_path):
    settings = BatchSettings((shift(tmp_path / "log", *TRUE, Wait=2.0),))
    plan = plan_batch([*pairs, replace(pairs[0], name="p2")], tmp_path / "out", settings)
    pid = cluster.run(os.getpid).popitem()[1]
    killer = subprocess.Popen(["sh", "-c", f"while ! [ -s '{tmp_path}/log' ]; do sleep 0.1; done; kill -9 {pid}"])
    batch = run_batch(plan, dask_engine.DaskEngine(cluster.scheduler.address))
    killer.wait()
    assert not batch.failed
    assert not batch.missing
    assert 3 <= runs(tmp_path / "log") <= 4
    assert not (tmp_path / "out" / "claims").exists()


@pytest.mark.slow
def test_a_stage_that_ends_its_worker_again_and_again_fails(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    settings = BatchSettings((shift(tmp_path / "log", *TRUE, What="die", MaskedOnly="true"),))
    batch = run_batch(plan_batch(pairs, tmp_path / "out", settings), dask_engine.DaskEngine("local", 1))
    [(pair, reason)] = batch.failed
    assert pair.name == "p1"
    assert "the workers that had it ended" in reason
    assert batch.records["p0"].status == "done"


def test_the_command(pairs, tmp_path, capfd):
    write_pairs([replace(pair, moving=Path("gone.mha")) for pair in pairs], tmp_path / "pairs.csv")
    assert call("batch", tmp_path / "pairs.csv", "-out", tmp_path / "out", "--scheduler", "local", "-p", "rigid") == 1
    told = capfd.readouterr().err
    assert told.count("does not exist") >= 2
    assert "2 pairs, 0 of them done, 2 failed" in told


# Queues, whose clusters a stand-in takes the place of


@pytest.fixture
def queue(monkeypatch):
    """A dask_jobqueue whose queue starts workers of this machine; returns what it was asked for."""
    asked = {}

    class Cluster(distributed.LocalCluster):
        def __init__(self, **settings):
            asked.update(settings)
            super().__init__(n_workers=0, threads_per_worker=1, dashboard_address=None, memory_limit=0)

        def scale(self, n=0, jobs=None):
            asked.setdefault("jobs", jobs)
            super().scale(jobs if jobs is not None else n)

        def new_worker_spec(self):
            if asked["queue"] == "closed":
                raise RuntimeError("sbatch: error:\nthe queue is closed")
            return super().new_worker_spec()

    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = Cluster
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    return asked


def test_a_queue_is_asked_for_what_the_settings_say(queue, pairs, tmp_path):
    (tmp_path / "slurm.toml").write_text('queue = "short"\ncores = 4\nmemory = "8GB"\nworker_extra_args = ["--x"]\n')
    engine = dask_engine.DaskEngine("slurm", 2, tmp_path / "slurm.toml")
    missing = [replace(pair, moving=tmp_path / "gone.mha") for pair in pairs]
    assert len(run_batch(plan_batch(missing, tmp_path / "out"), engine).failed) == 2
    assert queue == {
        "queue": "short", "cores": 4, "memory": "8GB", "processes": 1, "jobs": 2,
        "worker_extra_args": ["--x", "--nthreads", "1"],
    }  # fmt: skip


def test_kubernetes_is_asked_for_what_the_settings_say(monkeypatch, pairs, tmp_path):
    asked = {}

    class Cluster(distributed.LocalCluster):
        def __init__(self, **settings):
            asked.update(settings)
            super().__init__(n_workers=settings["n_workers"], threads_per_worker=1, dashboard_address=None)

    module = ModuleType("dask_kubernetes.operator")
    module.KubeCluster = Cluster
    monkeypatch.setitem(sys.modules, "dask_kubernetes", ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", module)
    (tmp_path / "pods.toml").write_text('image = "registry/regnet"\n[resources.requests]\nmemory = "8Gi"\n')
    engine = dask_engine.DaskEngine("kubernetes", 1, tmp_path / "pods.toml")
    missing = [replace(pair, moving=tmp_path / "gone.mha") for pair in pairs]
    assert len(run_batch(plan_batch(missing, tmp_path / "out"), engine).failed) == 2
    assert asked == {"n_workers": 1, "image": "registry/regnet", "resources": {"requests": {"memory": "8Gi"}}}


def test_a_scheduler_that_forgets_its_tasks_ends_the_batch_in_one_line():
    future = Future()
    future.cancel()
    with pytest.raises(RegistrationError, match="what is finished is kept, and the same command goes on"):
        dask_engine._said(future)


def test_a_queue_that_refuses(queue, tmp_path):
    (tmp_path / "slurm.toml").write_text('queue = "closed"\n')
    told = "the scheduler 'slurm' cannot be used: RuntimeError: sbatch: error: the queue is closed"
    with pytest.raises(RegistrationError, match=told):
        dask_engine.DaskEngine("slurm", 1, tmp_path / "slurm.toml").__enter__()


# What cannot be


def test_without_dask_one_line_says_so(monkeypatch, pairs, tmp_path, capfd):
    monkeypatch.delitem(sys.modules, "regnet_itk.engines.dask_engine")
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    write_pairs(pairs, tmp_path / "data" / "pairs.csv")
    words = ("batch", tmp_path / "data" / "pairs.csv", "-out", tmp_path / "out", "--scheduler", "local")
    assert call(*words) == 1
    assert "--scheduler needs dask.distributed" in (told := capfd.readouterr().err)
    assert "pip install 'regnet-itk[cluster]'" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("where", "settings", "told"),
    [
        ("slrum", None, "there is no scheduler 'slrum'; did you mean 'slurm'"),
        ("local", "a.toml", "`scheduler_settings` means nothing for the scheduler 'local'"),
        ("tcp://host:1", "a.toml", "`scheduler_settings` means nothing"),
        ("slurm", "gone.toml", r"the settings '.*gone.toml' cannot be read: No such file"),
        ("slurm", "a.toml", r"the settings '.*a.toml' are no TOML file"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, where, settings, told):
    (tmp_path / "a.toml").write_text("queue: short\n")
    with pytest.raises(ParameterError, match=told):
        dask_engine.DaskEngine(where, 1, settings and tmp_path / settings)


@pytest.mark.parametrize("package", ["dask_jobqueue", "dask_kubernetes.operator"])
def test_a_cluster_whose_package_is_missing(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    where = "slurm" if "jobqueue" in package else "kubernetes"
    with pytest.raises(ParameterError, match=f"the scheduler '{where}' needs"):
        dask_engine.DaskEngine(where)


def test_nobody_at_the_address(monkeypatch):
    monkeypatch.setattr(dask_engine, "_PATIENCE", 1)
    with pytest.raises(RegistrationError, match=r"the scheduler 'tcp://127.0.0.1:9' cannot be used"):
        dask_engine.DaskEngine("tcp://127.0.0.1:9").__enter__()
