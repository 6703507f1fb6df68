"""Nodules of known size and fate in phantoms: how many are matched rightly, and how far off their growth is.

``python pipelines/followup_benchmark.py [--seeds 3 4 5] [--picture FILE]`` makes phantoms with ten nodules each,
registers them by several chains, and prints the table of docs/follow_up.md. The picture is of some nodules of the first
phantom.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regnet_itk.anatomy.nodules import NodulePhantom, add_nodules
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.followup.findings import Finding
from regnet_itk.followup.lesions import Lesion, lesions_of_labels
from regnet_itk.followup.pictures import Scans, draw_findings
from regnet_itk.followup.study import FollowUp, follow_up
from regnet_itk.outputs import write_whole
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.trust.error_map import ErrorMap

CHAINS = {"`affine`": ("affine",), "`affine`, `regnet_multistage`": ("affine", "regnet_multistage")}
TRUTH = "the true motion itself"
SHOWN = ("grown", "close", "split", "gone", "new")


@dataclass(frozen=True)
class Row:
    """One lesion: whether it was found with its right partners, and what was measured of it."""

    fate: str
    right: bool
    doubtful: bool
    ratio_error: float | None
    distance: float | None


def main() -> int:
    """Make, register, match; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--spacing", type=float, default=1.0, help="edge of a voxel, mm")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    for seed in given.seeds:
        kind = "followup" if seed % 2 else "breathing"
        nodules = add_nodules(make_phantom(seed, kind, spacing=(given.spacing,) * 3), seed)
        for name, chain, errors in _chains(nodules):
            found = _follow(nodules, chain, errors)
            judged = list(_judge(nodules, found))
            rows.setdefault(name, []).extend(judged)
            print(f"phantom {seed} ({kind}), {name}: {sum(row.right for row in judged)} of {len(judged)}", flush=True)
            if given.picture and seed == given.seeds[0] and name == list(CHAINS)[-1]:
                _draw(nodules, found, chain, given.picture)
    _print(rows)
    return 0


def _chains(nodules: NodulePhantom) -> Iterator[tuple[str, TransformChain, ErrorMap | float]]:
    phantom = nodules.phantom
    for name, stages in CHAINS.items():
        result = register(phantom.fixed, phantom.moving, stages=list(stages), fixed_mask=phantom.fixed_mask)
        assert isinstance(result, RegistrationResult) and result.expected_error is not None
        yield name, result.chain, result.expected_error
    yield TRUTH, TransformChain((Link(phantom.displacement),)), 1.0


def _follow(nodules: NodulePhantom, chain: TransformChain, errors: ErrorMap | float) -> FollowUp:
    phantom = nodules.phantom
    return follow_up(
        lesions_of_labels(nodules.labels("fixed")), lesions_of_labels(nodules.labels("moving")), chain,
        fixed_grid=phantom.fixed.grid, moving_grid=phantom.moving.grid, expected_error=errors,
        fixed_date="2025-01-01", moving_date="2025-07-01",
    )  # fmt: skip


def _labels(lesions: tuple[Lesion, ...]) -> frozenset[int]:
    return frozenset(int(lesion.name) for lesion in lesions)


def _judge(nodules: NodulePhantom, found: FollowUp) -> Iterator[Row]:
    by_labels = {(_labels(finding.baseline), _labels(finding.follow_up)): finding for finding in found.findings}
    for lesion, fixed, moving in zip(nodules.known, nodules.fixed_numbers, nodules.moving_numbers, strict=True):
        finding = by_labels.get((frozenset(fixed), frozenset(moving)))
        error = None
        if finding is not None and finding.volume_change is not None:
            true = sum(n.volume for n in lesion.moving) / sum(n.volume for n in lesion.fixed)
            error = (1 + finding.volume_change) / true - 1
        doubtful = finding is not None and bool(finding.group.doubts)
        yield Row(lesion.fate, finding is not None, doubtful, error, finding.group.distance if finding else None)


def _draw(nodules: NodulePhantom, found: FollowUp, chain: TransformChain, path: Path) -> None:
    fates = {}
    for lesion, fixed, moving in zip(nodules.known, nodules.fixed_numbers, nodules.moving_numbers, strict=True):
        fates[frozenset(fixed), frozenset(moving)] = lesion.fate
    shown: dict[str, Finding] = {}
    for finding in found.findings:
        shown.setdefault(fates.get((_labels(finding.baseline), _labels(finding.follow_up)), ""), finding)
    chosen = [shown[fate] for fate in SHOWN if fate in shown]
    picture = draw_findings(chosen, found.visits, Scans(nodules.phantom.fixed, nodules.phantom.moving, chain))
    write_whole(path, lambda part: part.write_bytes(picture))


def _print(rows: dict[str, list[Row]]) -> None:
    print("\n| transform | matched rightly | told as doubtful | distance, mm: mean | largest |")
    print("|---|---|---|---|---|")
    for name, each in rows.items():
        distances = [row.distance for row in each if row.distance is not None]
        print(
            f"| {name} | {sum(row.right for row in each)} of {len(each)} | {sum(row.doubtful for row in each)} "
            f"| {np.mean(distances):.2f} | {max(distances):.2f} |"
        )
    errors = np.abs([row.ratio_error for row in rows[TRUTH] if row.ratio_error is not None])
    print(
        f"\nVolume after / volume before, {len(errors)} lesions: {100 * errors.mean():.1f} % off in the mean, "
        f"{100 * errors.max():.1f} % at most; within 5 %: {int((errors < 0.05).sum())}"
    )


if __name__ == "__main__":
    sys.exit(main())
