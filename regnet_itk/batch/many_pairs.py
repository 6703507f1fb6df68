"""Register many pairs by one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regnet_itk.batch.outputs import BATCH_FILES, write_batch
from regnet_itk.batch.run import Batch, plan_batch, run_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.engines.base import Engine
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.errors import ParameterError
from regnet_itk.events import LOGGER, Events
from regnet_itk.pairs import Pair
from regnet_itk.stages.planning import StageLike, check_stages, read_stages
from regnet_itk.threads import share_of_threads
from regnet_itk.transforms.chain import TransformChain


def register_pairs(
    pairs: Sequence[Pair],
    out: str | Path,
    stages: StageLike | Sequence[StageLike] | None = None,
    *,
    jobs: int = 1,
    engine: Engine | None = None,
    both_ways: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    priority: str | None = None,
    title: str = "Batch",
    events: Events | None = None,
) -> Batch:
    """Register many pairs, as ``regnet-itk batch`` does.

    Finished pairs are kept: the same call goes on after a stop, or with more pairs. A pair that fails stops nothing.
    Processes of their own do the work and import the script that calls, which so must guard what it does by
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    pairs : sequence of Pair
        ``regnet_itk.read_pairs("pairs.csv")``, or pairs of your own.
    out : str or Path
        Folder: ``pairs/NAME/`` in it is what ``regnet-itk run`` writes for a pair, ``batch.csv`` and ``batch.html``
        tell of all.
    stages : as for :func:`regnet_itk.register`
    jobs : int
        Processes of this machine.
    engine : Engine, optional
        Other workers in place of them, such as those of Dask.
    both_ways, seed, device, priority : as for :func:`regnet_itk.register`
    threads : int, optional
        CPU threads of each process; by default its share of the machine's.
    title : str
        Of the page.
    events : Events, optional
        Hears the share that is done, and in its log a line for each pair.

    Returns
    -------
    Batch
        ``failed`` has the pairs that failed with the reasons; ``records[name].facts`` tells of the others.

    Raises
    ------
    ParameterError, ModelError, OutputError
        Before anything runs; also if two pairs have one name.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import regnet_itk
    >>> from regnet_itk import Pair, make_phantom, write_phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_phantom(make_phantom(1, spacing=(8.0, 8.0, 8.0)), folder)
    >>> pair = Pair("chest", folder / "fixed.mha", folder / "moving.mha")
    >>> batch = regnet_itk.register_pairs([pair], folder / "result", "rigid")
    >>> batch.failed, (folder / "result/batch.csv").exists()
    ([], True)
    """
    _check(pairs, jobs)
    planned = None
    if stages is not None:
        planned = tuple(read_stages(stages, LOGGER))
        check_stages(planned, TransformChain())
    BATCH_FILES.check(Path(out), [])
    settings = BatchSettings(planned, threads or share_of_threads(jobs), seed, device, priority, both_ways)
    batch = run_batch(plan_batch(pairs, out, settings), engine or LocalEngine(jobs), events)
    write_batch(batch, batch.out, title)
    return batch


def _check(pairs: Sequence[Pair], jobs: int) -> None:
    if jobs < 1:
        raise ParameterError(f"`jobs` is {jobs}; give 1 or more")
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:  # they would share a folder
            raise ParameterError(f"two pairs are called '{pair.name}'; give each a name of its own")
        seen.add(pair.name)
