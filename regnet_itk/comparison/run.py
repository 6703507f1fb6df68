"""Register a set of pairs by several methods, and measure all of them alike.

A method is a chain of stages. Chains that begin alike share the results of what they have in common: the affine stage
runs once a pair. Each stage runs in a process of its own, and what is finished is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from regnet_itk.child_processes import Failed
from regnet_itk.comparison.methods import BEFORE, Method
from regnet_itk.comparison.outcomes import CAPTURE_RANGE, Comparison, Outcome
from regnet_itk.comparison.pair_steps import PairTask, compare_methods_on, compare_pair
from regnet_itk.comparison.step import StepSettings
from regnet_itk.engines.base import Engine
from regnet_itk.events import Events, Progress
from regnet_itk.metrics.registry import check_portable, known_metrics
from regnet_itk.outputs import check_writable
from regnet_itk.pairs import Pair, check_inputs_outside

Outcomes = dict[tuple[str, str], Outcome]
"""What became of the pairs, by the names of pair and method."""


def compare(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    out: str | Path,
    settings: StepSettings | None = None,
    *,
    capture_range: float = CAPTURE_RANGE,
    engine: Engine | None = None,
    events: Events | None = None,
) -> Comparison:
    """Register all pairs by all methods. What `out` holds already, of the same files and settings, is kept.

    Parameters
    ----------
    pairs : sequence of Pair
    methods : sequence of Method
        The first stage of the first one decides which landmarks count for TRE'.
    out : str or Path
        ``pairs/PAIR/STAGE+STAGE/`` there holds the transform and the measures of each step.
    settings : StepSettings
    capture_range : float
        mm, for TRE'.
    engine : Engine, optional
        Does several pairs at a time, each with its methods one after the other; by default one pair after the other
        on this machine. The seconds that are measured are those of a machine that does all of that.
    events : Events, optional
        Hears the share that is done, and in its log, at the level INFO, a line for each step that ended.

    Returns
    -------
    Comparison
        With what failed; a failure does not stop the rest.

    Raises
    ------
    OutputError
        If `out` cannot be written, or an input lies among the steps in it.
    ParameterError
        If a model's file was changed meanwhile, or a metric cannot be used.
    """
    check_writable(out)
    metrics = known_metrics()
    check_portable(metrics)
    folder, settings = Path(out).resolve() / "pairs", settings or StepSettings()
    check_inputs_outside(pairs, folder)
    compared = (Method(BEFORE, (), ()), *methods)
    labels = _unique_labels(methods)
    tasks = [PairTask(pair.absolute(), folder, compared, labels, settings, metrics) for pair in pairs]
    done = _compare_here if engine is None else partial(_compare_on, engine)
    outcomes = done(tasks, events or Events())
    return Comparison(tuple(pairs), compared, outcomes, capture_range, settings, metrics=metrics)


def _compare_here(tasks: Sequence[PairTask], events: Events) -> Outcomes:
    """Do one pair after the other."""
    found: Outcomes = {}
    for number, task in enumerate(tasks):

        def show(now: Progress, number: int = number, name: str = task.pair.name) -> None:
            share = (number + now.fraction) / len(tasks)
            events.progress(
                Progress(share, f"pair {number + 1} of {len(tasks)} ({name}), {now.text}", name="comparison")
            )

        outcomes = compare_methods_on(task, show, events.log.info)
        found |= {(task.pair.name, name): outcome for name, outcome in outcomes.items()}
    return found


def _compare_on(engine: Engine, tasks: Sequence[PairTask], events: Events) -> Outcomes:
    """Do as many pairs at a time as an engine can."""
    found: Outcomes = {}
    shares = {task.pair.name: 0.0 for task in tasks}

    def hear(task: PairTask, now: Progress) -> None:
        shares[task.pair.name] = max(shares[task.pair.name], now.fraction)
        whole = sum(shares.values()) / len(tasks)
        events.progress(Progress(whole, f"{task.pair.name}, {now.text}", name="comparison"))

    with engine as ready:
        for task, said in ready.run(compare_pair, tasks, hear):
            hear(task, Progress(1.0, "done"))
            if isinstance(said, Failed):
                folder = task.folder / task.pair.file_name
                found |= {(task.pair.name, method.name): Outcome((), folder, said.reason) for method in task.methods}
                continue
            for line in said.result.lines:
                events.log.info(line)
            found |= {(task.pair.name, name): outcome for name, outcome in said.result.outcomes.items()}
    return found


def _unique_labels(methods: Sequence[Method]) -> dict[str, str]:
    """Return the label of each stage by its fingerprint; different stages of the same name are numbered."""
    found: dict[str, str] = {"": BEFORE}
    for method in methods:
        for stage, label in zip(method.stages, method.labels, strict=True):
            taken = sum(other.split("~")[0] == label for mark, other in found.items() if mark != stage.fingerprint())
            found.setdefault(stage.fingerprint(), f"{label}~{taken + 1}" if taken else label)
    return found
