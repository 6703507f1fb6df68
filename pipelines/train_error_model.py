"""Learn the error of registrations from samples, calibrate it, and judge it.

``python pipelines/train_error_model.py SAMPLES --out FILE``: SAMPLES has the folders ``train``, ``val`` and ``test``
that ``make_error_samples.py`` writes; what is missing there is made first, if ``--images FOLDER`` says of what. All but
``test`` is learnt from and calibrated by (each patient by a network that did not see it); ``test`` judges.
``--figure FILE.png`` draws how what is told and what is true go together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from error_samples import MADE_ERRORS
from make_error_samples import make_samples
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata, spearmanr

from regnet_itk.trust.clues import NAMES
from regnet_itk.trust.error_model import COVERAGE, ErrorModel, ErrorModelCard, ErrorNetwork, save_error_model

FAR_OFF = 3.0
"""mm."""

_LEAST = 0.01  # working voxels: smaller errors are all alike
_NO_END = 1e9
_BATCH = 4096
_MEANS = 10  # parts of what is told, of each of which the mean error is found
_FOLDS = 5
_BLUR = 0.3  # of the clues, of the distance between their quartiles; by cross-validation over the training pairs


@dataclass(frozen=True, eq=False)
class Table:
    """Points of many transforms of many pairs."""

    values: np.ndarray
    errors: np.ndarray
    residuals: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    names: np.ndarray
    pairs: np.ndarray
    patients: np.ndarray

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
            patients = np.full(n, f"{folder.name} {d['patient']}")
            parts.append(
                (d["values"], d["errors"], d["residuals"], d["voxel_sizes"], kinds, d["names"], pairs, patients)
            )
    return Table(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def joined(tables: Iterable[Table]) -> Table:
    """Return the rows of all tables as one."""
    columns = ([getattr(table, name) for name in Table.__dataclass_fields__] for table in tables)
    return Table(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def is_made(table: Table) -> np.ndarray:
    """Say which rows are of made errors, and not of what a chain found."""
    return np.array([name.partition("-")[0] in MADE_ERRORS and "-" in name for name in table.names])


def weigh(table: Table) -> np.ndarray:
    """Return how often each row is learnt from: what chains found is half of all, and so much of each kind of pair."""
    made, weights = is_made(table), np.zeros(len(table.errors))
    for kind in np.unique(table.kinds):
        for part in (made, ~made):
            these = part & (table.kinds == kind)
            weights[these] = 1.0 / max(1, these.sum())
    return weights


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


def tell_unseen(table: Table, epochs: int) -> np.ndarray:
    """Return what networks that did not see a patient tell of the points: expected error and radius (n, 2)."""
    patients = np.random.default_rng(0).permutation(np.unique(table.patients))
    found = np.empty((len(table.errors), 2), dtype=np.float32)
    for fold in range(_FOLDS):
        unseen = np.isin(table.patients, patients[fold::_FOLDS])
        network = fit(table.part(~unseen), epochs=epochs)
        network.eval()
        with torch.no_grad():
            found[unseen] = network(torch.from_numpy(table.values[unseen])).exp().numpy()
    return found


def weigh_found(table: Table) -> np.ndarray:
    """Return weights of the rows by which each chain on a kind of pair counts alike; made errors count nothing.

    More pairs of one kind, of which there is no end of some, do not outweigh the others.
    """
    found = ~is_made(table) & ~np.char.count(table.names, " x ").astype(bool)
    weights = np.zeros(len(table.errors))
    for kind in np.unique(table.kinds):
        for name in np.unique(table.names[found & (table.kinds == kind)]):
            of_chain = found & (table.names == name) & (table.kinds == kind)
            weights[of_chain] = 1.0 / of_chain.sum()
    return weights


def calibrate(table: Table, told: np.ndarray) -> ErrorModelCard:
    """Find the factor by which the radius holds in 90 % of the cases, and the mean error where so much is told.

    Half of what is learnt from are made errors; those that chains leave are larger where the images look the same.

    Parameters
    ----------
    table : Table
    told : ndarray, shape (n, 2)
        Expected error and radius, by networks that did not see the pair (cross-conformal).
    """
    weights = weigh_found(table)
    ratio = table.errors / told[:, 1]
    order, share = _in_order(ratio, weights)
    factor = float(ratio[order][np.searchsorted(share, COVERAGE)])
    order, share = _in_order(told[:, 0], weights)
    parts = [
        order[part] for part in np.split(np.arange(len(order)), np.searchsorted(share, np.arange(1, _MEANS) / _MEANS))
    ]
    below, means = (np.array([np.average(v[p], weights=weights[p]) for p in parts]) for v in (told[:, 0], table.errors))
    rising = isotonic_regression(means).x
    return ErrorModelCard(factor, tuple(zip(below.tolist(), rising.tolist(), strict=True)))


def _in_order(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of values of some weight, and the share of the weights up to each."""
    order = np.argsort(values)
    order = order[weights[order] > 0]
    return order, np.cumsum(weights[order]) / weights.sum()


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
        back = (table.residuals * table.sizes)[chosen]
        both = np.isfinite(back)
        if both.any():
            row["inverse_consistency"] = float(spearmanr(e[both], back[both])[0])
            row["inverse_area"] = area(e[both] > FAR_OFF, back[both])
            row["rank_there"], row["area_there"] = (
                float(spearmanr(e[both], p[both, 0])[0]),
                area(e[both] > FAR_OFF, p[both, 0]),
            )
        yield row


def by_kind(table: Table, values: np.ndarray) -> dict[str, float]:
    """Return the mean of values over what chains found, by kind of pair."""
    weights = weigh_found(table)
    kinds = {str(kind): table.kinds == kind for kind in np.unique(table.kinds)}
    return {kind: float(np.average(values[of], weights=weights[of])) for kind, of in kinds.items()}


def draw(model: ErrorModel, table: Table, path: Path) -> None:
    """Draw the true error and the share within the radius, over what is told."""
    found = model.predict_points(table.values) * table.sizes[:, None]
    errors = table.errors * table.sizes
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    for kind in np.unique(table.kinds):
        e, p = errors[table.kinds == kind], found[table.kinds == kind]
        edges = np.quantile(p[:, 0], np.linspace(0, 1, 13))
        at = np.clip(np.searchsorted(edges, p[:, 0], side="right") - 1, 0, 11)
        bins = [at == n for n in range(12)]
        left.loglog([p[b, 0].mean() for b in bins], [e[b].mean() for b in bins], "o-", label=str(kind))
        right.semilogx([p[b, 0].mean() for b in bins], [100 * (e[b] <= p[b, 1]).mean() for b in bins], "o-")
    ends = np.array([0.1, 30.0])
    left.loglog(ends, ends, "k:")
    right.axhline(100 * COVERAGE, color="k", linestyle=":")
    left.set(xlabel="expected error, mm", ylabel="true error in the mean, mm")
    right.set(xlabel="expected error, mm", ylabel="within the radius, %", ylim=(50, 100))
    left.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Fit, calibrate, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=Path, help="chest CTs to make samples of that are missing")
    parser.add_argument("--pairs", type=int, default=36, help="of each kind to learn from, to be made")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.images is not None:
        make_samples(given.images, given.samples, given.pairs)
    table = joined(read_samples(given.samples / name) for name in ("train", "val"))
    told = tell_unseen(table, given.epochs)
    card = calibrate(table, told)
    told = card.calibrate(told)
    counts = {"pairs": len(np.unique(table.pairs)), "points": len(table.errors)}
    measured = {
        "pairs": counts["pairs"],
        "within_the_radius": by_kind(table, table.errors <= told[:, 1]),
        "mean_error_voxels": by_kind(table, table.errors),
        "expected_voxels": by_kind(table, told[:, 0]),
    }
    card = replace(card, usual=usual(table), training=counts, calibration=measured)
    model = ErrorModel(fit(table, epochs=given.epochs), card)
    test = read_samples(given.samples / "test")
    rows = list(judge(model, test))
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()))
    accuracy = {"pairs": len(np.unique(test.pairs)), "judged": rows}
    save_error_model(replace(model, card=replace(model.card, accuracy=accuracy)), given.out)
    if given.figure is not None:
        draw(model, test, given.figure)


if __name__ == "__main__":
    main()
