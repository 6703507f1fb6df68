"""Tasks done by dask.distributed: on this machine, on a running scheduler, or on a cluster's queue.

Nothing else in this package knows Dask, and this module is imported only if a scheduler is asked for.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from regnet_itk.child_processes import Done, Failed, Work, failure_of
from regnet_itk.engines.base import Task
from regnet_itk.errors import ParameterError, RegistrationError, did_you_mean
from regnet_itk.events import LOGGER, Events, Progress

try:
    from dask.distributed import Client, KilledWorker, LocalCluster, as_completed
    from distributed.utils import silence_logging_cmgr
except ImportError as error:
    raise ParameterError(
        f"`scheduler` needs dask.distributed ({error}): install it with pip install 'regnet-itk[cluster]'"
    ) from None

_QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}
KINDS = ("local", *_QUEUES, "kubernetes")
"""What may be asked for, beside the address of a running scheduler."""

_PER_WORKER = 2  # tasks that are given out for each worker, so that none waits
_PATIENCE = 30  # seconds for a scheduler to answer


class DaskEngine:
    """Gives tasks to a Dask scheduler; see :class:`regnet_itk.engines.base.Engine`.

    It cannot tell how far a task is.

    Parameters
    ----------
    where : str
        "local", "slurm", "pbs", "sge", "kubernetes", or the address of a running scheduler ("tcp://host:8786").
    jobs : int
        How many workers, or jobs of a queue, to start; a running scheduler has its own.
    settings_file : str or Path, optional
        A TOML file with the arguments of the cluster's class in dask-jobqueue or dask-kubernetes.

    Raises
    ------
    ParameterError
        If there is no such kind, a package is missing, or the settings cannot be read or are not asked for.
    """

    def __init__(self, where: str, jobs: int = 1, settings_file: str | Path | None = None) -> None:
        if where not in KINDS and ":" not in where:
            near = did_you_mean(where, KINDS) or f"; known are {', '.join(KINDS)}"
            raise ParameterError(f"there is no scheduler '{where}'{near}; an address looks like tcp://host:8786")
        if settings_file is not None and (where == "local" or ":" in where):
            raise ParameterError(f"`scheduler_settings` means nothing for the scheduler '{where}'; leave it out")
        settings = {} if settings_file is None else _read_settings(Path(settings_file))
        self._where, self._open = where, _opener(where, jobs, settings)
        self._stack = ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> DaskEngine:
        self._stack.enter_context(silence_logging_cmgr(logging.CRITICAL))  # what went wrong is said in one line
        try:
            target = self._open(self._stack)
            self._client = self._stack.enter_context(Client(target, timeout=_PATIENCE))
        except Exception as error:  # whatever a cluster's software says
            with suppress(Exception):  # what has not begun cannot always be ended
                self._stack.close()
            raise RegistrationError(f"the scheduler '{self._where}' cannot be used: {failure_of(error)}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self, work: Work, tasks: Iterable[Task], hear: Callable[[Task, Progress], None]
    ) -> Iterator[tuple[Task, Done | Failed]]:
        """Do tasks."""
        assert self._client is not None
        waiting = iter(tasks)
        given: dict[Any, Task] = {}
        ended = as_completed()
        if not self._threads():
            LOGGER.info("no worker is there yet; waiting for one")
        self._give(work, waiting, given, ended)
        for future in ended:
            yield given.pop(future), _said(future)
            self._give(work, waiting, given, ended)

    def _threads(self) -> int:
        """Return how many tasks the workers take at a time."""
        assert self._client is not None
        return sum(self._client.nthreads().values())

    def _give(self, work: Work, waiting: Iterator[Task], given: dict[Any, Task], ended: Any) -> None:
        """Give out some tasks more: of many thousands, a scheduler need not know all at once."""
        assert self._client is not None
        wanted = _PER_WORKER * max(1, self._threads()) - len(given)
        for task in islice(waiting, max(0, wanted)):
            future = self._client.submit(_do, work, task, pure=False)
            given[future] = task
            ended.add(future)


def _do(work: Work, task: Any) -> Any:
    return work(task, Events())


def _said(future: Any) -> Done | Failed:
    try:
        return Done(future.result())
    except CancelledError:
        raise RegistrationError(
            "the scheduler has ended or forgotten its tasks; what is finished is kept, and the same command goes on"
        ) from None
    except KilledWorker:
        return Failed("the workers that had it ended, again and again; probably memory ran out")
    except Exception as error:
        return Failed(failure_of(error))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"the settings '{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ParameterError(f"the settings '{path}' are no TOML file: {error}") from None


def _opener(where: str, jobs: int, settings: Mapping[str, Any]) -> Callable[[ExitStack], Any]:
    """Return what gives a client its scheduler; what it starts is closed with a stack."""
    if where == "local":
        return lambda stack: stack.enter_context(
            LocalCluster(  # no limit of memory: Dask would end workers that are near it
                n_workers=jobs, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=logging.ERROR
            )
        )
    if where == "kubernetes":
        try:
            from dask_kubernetes.operator import KubeCluster
        except ImportError as error:
            raise ParameterError(f"the scheduler 'kubernetes' needs pip install dask-kubernetes ({error})") from None
        return lambda stack: stack.enter_context(KubeCluster(**{"n_workers": jobs, **settings}))
    if where in _QUEUES:
        try:
            import dask_jobqueue
        except ImportError as error:
            raise ParameterError(
                f"the scheduler '{where}' needs dask-jobqueue ({error}): pip install 'regnet-itk[cluster]'"
            ) from None
        return lambda stack: _queue(stack, getattr(dask_jobqueue, _QUEUES[where]), jobs, settings)
    return lambda stack: where


def _queue(stack: ExitStack, cluster_type: Any, jobs: int, settings: Mapping[str, Any]) -> Any:
    """Start a scheduler here, and ask a queue for jobs that work for it."""
    one_at_a_time = ["--nthreads", "1"]  # the cores of a job are for the threads of one task
    more = [*settings.get("worker_extra_args", []), *one_at_a_time]
    cluster = stack.enter_context(cluster_type(**{"processes": 1, **settings, "worker_extra_args": more}))
    cluster.worker_spec.update(cluster.new_worker_spec())
    cluster.sync(cluster._correct_state)  # the first job by itself: `scale` would not say that the queue refuses it
    cluster.scale(jobs=jobs)
    return cluster
