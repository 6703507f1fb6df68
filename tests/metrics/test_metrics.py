"""Metrics as records: what they compute, what they need, and how they are found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.metrics import registry
from regnet_itk.metrics.metric import Metric, mean_of
from regnet_itk.metrics.registered_pair import NEEDS, RegisteredPair
from regnet_itk.metrics.registry import METRICS, known_metrics, register_metric, unregister_metric
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

GRID = Grid((12, 10, 8), (1.0, 2.0, 3.0), (5.0, -5.0, 7.0))
RIGHT = TransformChain((Link(MatrixTransform(np.eye(3), translation=np.array([2.0, 0.0, 0.0]))),))


def image(values):
    return Image(np.asarray(values), GRID)


def box(*start):
    values = np.zeros(GRID.shape, np.uint8)
    z, y, x = start
    values[z : z + 3, y : y + 3, x : x + 3] = 1
    return values


def pair(chain=RIGHT, **more):
    """A pair that a shift of 2 mm, two voxels, along x registers."""
    values = np.random.default_rng(0).normal(0, 100, GRID.shape)
    return RegisteredPair(image(np.roll(values, -2, axis=2)), image(values), chain, **more)


def constant(_):
    return 1.0


ANY = Metric("any", "any", constant)


def test_the_shipped_metrics_by_hand():
    labels, moved = 4 * box(2, 2, 2) + 9 * box(2, 6, 2), 4 * box(2, 2, 4) + 9 * box(2, 6, 5)
    given = pair(fixed_mask=image(box(2, 2, 2)), fixed_labels=image(labels), moving_labels=image(moved))
    found = {metric.name: metric.measure(given) for metric in known_metrics()}
    assert found["correlation"] == pytest.approx(1.0, abs=1e-3)
    assert found["dice"] == pytest.approx({"4": 1.0, "9": 2 / 3})  # 18 of 27 voxels overlap
    assert METRICS["dice"].shown(found["dice"]) == pytest.approx(5 / 6)
    assert found["folding"] == 0.0
    before = {metric.name: metric.measure(pair(TransformChain())) for metric in known_metrics()}
    assert abs(before["correlation"]) < 0.3
    assert before["dice"] == {}
    turned = TransformChain((Link(MatrixTransform(np.diag([-1.0, 1.0, 1.0]), centre=GRID.centre())),))
    folded = METRICS["folding"]
    assert folded.shown(folded.measure(pair(turned))) == 100.0


def test_masks_stand_for_labels():
    given = pair(fixed_mask=image(7 * box(2, 2, 2)), moving_mask=image(3 * box(2, 2, 4)))
    assert METRICS["dice"].measure(given) == {"mask": 1.0}


def test_what_is_needed():
    everything = {
        "fixed_mask": {"fixed_mask": image(box(1, 1, 1))},
        "masks": {"fixed_mask": image(box(1, 1, 1)), "moving_mask": image(box(1, 1, 1))},
        "labels": {"fixed_labels": image(box(1, 1, 1)), "moving_labels": image(box(1, 1, 1))},
        "landmarks": {"fixed_landmarks": Landmarks([[1, 2, 3]]), "moving_landmarks": Landmarks([[1, 2, 3]])},
        "truth": {"truth": DisplacementField(np.zeros((*GRID.shape, 3)), GRID)},
    }
    fulfils = {"masks": {"fixed_mask", "masks", "structures"}, "labels": {"labels", "structures"}}
    for name, given in everything.items():
        told = {need for need in NEEDS if Metric("any", "any", constant, needs=(need,)).measure(pair(**given)) == 1.0}
        assert told == fulfils.get(name, {name})
    assert all(Metric("any", "any", constant, needs=(need,)).measure(pair()) == {} for need in NEEDS)
    assert math.isnan(mean_of({})) and math.isnan(mean_of(None))


def test_what_a_function_does_wrong_is_told():
    for function, told in ((lambda p: 1 / 0, "ZeroDivisionError"), (lambda p: None, "TypeError")):
        with pytest.raises(RegistrationError, match=f"the metric 'any' failed: {told}"):
            Metric("any", "any", function).measure(pair())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Metric("two words", "a", constant), "cannot be called 'two words'"),
        (lambda: Metric("differences", "a", constant), "cannot be called 'differences'"),
        (lambda: Metric("a", "a", constant, needs=("mask",)), "needs 'mask', which is not known; known are fixed_mask"),
        (lambda: register_metric(Metric("dice", "a", constant)), "there is a metric 'dice' already"),
        (lambda: register_metric(Metric("mine", "a", constant, column="dice")), "there is a metric 'dice' already"),
    ],
)
def test_metrics_that_are_refused(make, told):
    with pytest.raises(ParameterError, match=told):
        make()


def test_one_that_was_registered_comes_last_until_it_is_forgotten():
    before = known_metrics()
    register_metric(ANY)
    try:
        assert known_metrics() == (*before, ANY)
    finally:
        unregister_metric("any")
    assert known_metrics() == before


@pytest.fixture
def installed(install_packages):
    """Gives entry points as if a package had them."""
    return lambda value: install_packages(registry.ENTRY_POINTS, any=value)


def test_one_of_another_package_is_found(installed):
    installed(f"{__name__}:ANY")
    assert known_metrics()[-1] is ANY


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_module:ANY", "the metric 'any' of 'no_such_module:ANY' cannot be loaded: ModuleNotFoundError"),
        (f"{__name__}:GRID", "is to be the metric 'any', and is none"),
        ("regnet_itk.metrics.registry:METRICS", "and is none"),
    ],
)
def test_another_package_that_is_broken_is_told(installed, value, told):
    installed(value)
    with pytest.raises(ParameterError, match=told):
        known_metrics()


def test_the_fingerprint_follows_the_file_of_the_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "some_metric.py"
    file.write_text("def f(pair):\n    return 1.0\n")
    import some_metric

    metric = Metric("any", "any", some_metric.f)
    first = metric.fingerprint()
    assert metric.fingerprint() == first
    assert Metric("other", "any", some_metric.f).fingerprint() != first
    file.write_text("def f(pair):\n    return 2.0\n")
    assert metric.fingerprint() != first
