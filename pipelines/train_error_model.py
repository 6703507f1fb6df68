"""Learn the error of registrations from samples, calibrate it, and judge it.

``python pipelines/train_error_model.py SAMPLES --out FILE``: SAMPLES has the folders ``train``, ``val`` (to calibrate
by) and ``test`` (to judge by) that ``make_error_samples.py`` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from error_samples import MADE_ERRORS
from scipy.stats import rankdata, spearmanr

from regnet_itk.trust.clues import NAMES
from regnet_itk.trust.error_model import COVERAGE, ErrorModel, ErrorModelCard, ErrorNetwork, save_error_model

FAR_OFF = 3.0
"""mm."""

_LEAST = 0.01  # working voxels: smaller errors are all alike
_NO_END = 1e9
_BATCH = 4096
_BLUR = 0.3  # of the clues, of the distance between their quartiles; by cross-validation over the training pairs


@dataclass(frozen=True, eq=False)
class Table:
    """Points of many transforms of many pairs."""

    values: np.ndarray
    errors: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    names: np.ndarray
    pairs: np.ndarray

    def part(self, chosen: np.ndarray) -> Table:
        """Return some of the rows."""
        return Table(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def read_samples(folder: Path) -> Table:
    """Read all files of a folder."""
    parts = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as d:
            if tuple(d["columns"]) != NAMES:
                sys.exit(f"error: '{path}' has other clues; make the samples anew with make_error_samples.py")
            n = len(d["errors"])
            kinds, pairs = np.full(n, str(d["kind"])), np.full(n, path.stem)
            parts.append((d["values"], d["errors"], d["voxel_sizes"], kinds, d["names"], pairs))
    return Table(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def weigh(table: Table) -> np.ndarray:
    """Return how often each row is learnt from: what chains found is half of all, as it is in use."""
    made = np.array([name.partition("-")[0] in MADE_ERRORS for name in table.names])
    return np.where(made, 0.5 / max(1, made.sum()), 0.5 / max(1, (~made).sum()))


def fit(table: Table, seed: int = 0, epochs: int = 20) -> ErrorNetwork:
    """Fit a network: the mean error by the Gamma deviance, the radius by the quantile's loss."""
    torch.manual_seed(seed)
    network = ErrorNetwork()
    low, middle, high = np.percentile(table.values, (25, 50, 75), axis=0)
    network.centre.copy_(torch.from_numpy(middle.astype(np.float32)))
    network.scale.copy_(torch.from_numpy(np.maximum(high - low, 1e-3 + 0.1 * table.values.std(0)).astype(np.float32)))
    x, y = torch.from_numpy(table.values), torch.from_numpy(table.errors).clamp(min=_LEAST).log()
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = epochs * (len(x) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weights = torch.from_numpy(weigh(table))
    for _ in range(steps):
        chosen = torch.multinomial(weights, _BATCH, replacement=True)
        # few pairs are learnt from, each with many points: with blurred clues it cannot know the pairs again
        blurred = x[chosen] + _BLUR * network.scale * torch.randn(_BATCH, x.shape[1])
        expected, radius = network(blurred).unbind(1)
        over = y[chosen] - radius
        loss = (expected + (y[chosen] - expected).exp()).mean() + torch.maximum(
            COVERAGE * over, (COVERAGE - 1) * over
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network


def calibrate(network: ErrorNetwork, table: Table) -> float:
    """Return the factor by which the radius holds in 90 % of the calibration pairs' points (split conformal)."""
    found = ErrorModel(network, ErrorModelCard()).predict_points(table.values)
    return float(np.quantile(table.errors / found[:, 1], COVERAGE))


def usual(table: Table) -> dict[str, tuple[float, float]]:
    """Return the span of the clues that hold for a whole pair, with a margin on the bad side and no end on the good."""
    first = NAMES.index("all_difference")
    found = {}
    for k, name in list(enumerate(NAMES))[first:]:
        low, high = (float(v) for v in np.percentile(table.values[:, k], (0.0, 100.0)))
        margin = 0.1 * (high - low)
        better_high = name.endswith(("correlation", "overlap"))
        found[name] = (low - margin, _NO_END) if better_high else (-_NO_END, high + margin)
    return found


def area(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve."""
    ranks, n = rankdata(score), int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def judge(model: ErrorModel, table: Table) -> Iterator[dict[str, object]]:
    """Tell the quality by kind of pair and of chain, and over all, beside single clues."""
    found = model.predict_points(table.values) * table.sizes[:, None]
    errors = table.errors * table.sizes
    groups = {"all": np.ones(len(errors), bool)}
    groups |= {kind: table.kinds == kind for kind in np.unique(table.kinds)}
    groups |= {f"chain {name}": table.names == name for name in np.unique(table.names)}
    for name, chosen in groups.items():
        e, p = errors[chosen], found[chosen]
        row = {
            "group": name, "points": int(chosen.sum()), "mean": float(e.mean()), "predicted": float(p[:, 0].mean()),
            "coverage": float((e <= p[:, 1]).mean()), "rank": float(spearmanr(e, p[:, 0])[0]),
            "area": area(e > FAR_OFF, p[:, 0]), "off": float(np.abs(e - p[:, 0]).mean()),
        }  # fmt: skip
        for clue, sign in (("correlation", -1), ("log_determinant", 0), ("difference", 1), ("common_shift_far", 1)):
            value = table.values[chosen, NAMES.index(clue)]
            row[clue] = float(spearmanr(e, np.abs(value) if sign == 0 else sign * value)[0])
        yield row


def main() -> None:
    """Fit, calibrate, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    train, calibration = read_samples(given.samples / "train"), read_samples(given.samples / "val")
    network = fit(train, epochs=given.epochs)
    counts = ({"pairs": len(np.unique(t.pairs)), "points": len(t.errors)} for t in (train, calibration))
    card = ErrorModelCard(calibrate(network, calibration), usual(train), *counts)
    model = ErrorModel(network, card)
    print(f"factor {card.factor:.3f}")
    rows = list(judge(model, calibration))
    if (given.samples / "test").is_dir():
        rows = list(judge(model, read_samples(given.samples / "test")))
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    save_error_model(ErrorModel(network, replace(card, accuracy={"judged": rows})), given.out)


if __name__ == "__main__":
    main()
