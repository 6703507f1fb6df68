"""Try chains of stages on many kinds of pairs: cropped, padded, turned, with a lung missing, of two patients ..

Prints a table with the landmark error of each kind before, and after each stage, and marks what was warned of. Where
two patients are registered, the landmarks are extreme points of the lungs; without overlap there are none.

    python pipelines/kinds_of_pairs.py --spacing 2.5 --chain affine,regnet_multistage --chain affine_paper
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from regnet_itk import RegistrationEvents, register
from regnet_itk.anatomy.pair_kinds import PAIR_KINDS, KnownPair, change_pair, make_whole_pair
from regnet_itk.errors import RegNetItkError
from regnet_itk.transforms.chain import TransformChain


class _Heard(RegistrationEvents):
    """Counts the warnings."""

    def __init__(self) -> None:
        self.log = logging.Logger("kinds_of_pairs")
        self.log.addHandler(handler := logging.Handler(logging.WARNING))
        handler.emit = self._take  # type: ignore[method-assign]
        self.warned: list[str] = []

    def _take(self, record: logging.LogRecord) -> None:
        self.warned.append(record.getMessage())


def try_chain(pair: KnownPair, stages: Sequence[str], threads: int | None = None) -> tuple[list[str], list[str]]:
    """Register a pair by a chain of stages.

    Returns
    -------
    errors : list of str
        The landmark error in mm after each stage; "refused" for a chain that ended with an error.
    warned : list of str
        The warnings, and that error.
    """
    heard = _Heard()
    try:
        result = register(pair.fixed, pair.moving, stages, threads=threads, events=heard)
    except RegNetItkError as error:
        return ["refused"] * len(stages), [*heard.warned, str(error)]
    chains = [TransformChain(result.chain.links[: report.links]) for report in result.stages]
    return [_error(pair, chain) for chain in chains], heard.warned


def _error(pair: KnownPair, chain: TransformChain) -> str:
    return f"{pair.landmark_error(chain.map_points):.1f}" if len(pair.fixed_landmarks) else ""


def main() -> None:
    """Print the table, and below it what was warned of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spacing", type=float, default=2.5, help="edge of a voxel in mm")
    parser.add_argument("--seed", type=int, default=3, help="chooses the patient")
    parser.add_argument("--oblique", action="store_true", help="turn the images' grids by a few degrees")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kinds", default=",".join(PAIR_KINDS), help="names, with commas between them")
    parser.add_argument("--chain", action="append", dest="chains", help="stages, with commas between them")
    given = parser.parse_args()
    chains = [chain.split(",") for chain in given.chains or ["affine,regnet_multistage", "affine_paper"]]
    whole = make_whole_pair(given.seed, given.spacing, given.oblique)
    print("| kind | before |" + "".join(f" `{name}` |" for stages in chains for name in stages))
    print("|---|---|" + "---|" * sum(map(len, chains)))
    told = []
    for kind in given.kinds.split(","):
        pair = change_pair(whole, kind)
        row = [_error(pair, TransformChain())]
        for stages in chains:
            errors, warned = try_chain(pair, stages, given.threads)
            row += [*errors[:-1], errors[-1] + (" (w)" if warned else "")]
            told += [f"{kind}, {','.join(stages)}: {line}" for line in warned]
        print(f"| {kind} | " + " | ".join(row) + " |", flush=True)
    print("\n(w): with a warning\n", *told, sep="\n")


if __name__ == "__main__":
    main()
