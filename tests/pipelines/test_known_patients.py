"""The benchmarks on phantoms with nodules, a breath and a dose: under the true motion they find the truth."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import load_pipeline

from regnet_itk.anatomy.nodules import add_nodules
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.ventilation.maps import find_ventilation


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(4.0, 4.0, 4.5), extent=(320.0, 240.0, 260.0))


@pytest.fixture(scope="module")
def truth(phantom):
    return TransformChain((Link(phantom.displacement),))


def test_nodules(phantom, truth, tmp_path, capsys):
    benchmark = load_pipeline("followup_benchmark")
    nodules = add_nodules(phantom, 3, ("grown", "new", "gone"), radii=(8.0, 10.0))
    found = benchmark._follow(nodules, truth, 1.0)
    rows = list(benchmark._judge(nodules, found))
    assert [(row.fate, row.right, row.doubtful) for row in rows] == [(f, True, False) for f in ("grown", "new", "gone")]
    assert abs(rows[0].ratio_error) < 0.25 and rows[1].ratio_error is None
    benchmark._draw(nodules, found, truth, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    benchmark._print({benchmark.TRUTH: rows})
    assert "3 of 3" in capsys.readouterr().out


def test_a_breath(phantom, truth):
    benchmark = load_pipeline("ventilation_benchmark")
    maps = find_ventilation(phantom.fixed, phantom.moving, truth, phantom.fixed_mask)
    volume, error, jacobian, hounsfield, median = benchmark._measure(phantom, maps)
    assert volume < 1 and error < 0.02 and jacobian > 0.98
    assert hounsfield > 0.6 and median < 0.05


def test_a_dose_and_structures(phantom, truth):
    pytest.importorskip("pydicom")
    benchmark = load_pipeline("radiotherapy_benchmark")
    mean, high, lungs, tumour, alone, point = benchmark._measure(phantom, truth)
    assert mean < 0.6 and high < 1.5
    np.testing.assert_allclose([lungs, tumour], 0, atol=0.03)
    assert abs(alone) < 0.003 and point < 0.1
