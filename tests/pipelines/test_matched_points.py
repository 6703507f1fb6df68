"""Points of a pair that a program matches are where the true motion puts them, on a turned, anisotropic grid."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import load_pipeline

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import ImageError
from regnet_itk.transforms.chain import Link, TransformChain


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(2.0, 2.0, 2.5), extent=(300.0, 220.0, 220.0))


def _off(phantom, *mm):
    """Return a chain that is off the truth by so much."""
    return TransformChain((Link(DisplacementField(phantom.displacement.vectors + np.float32(mm), phantom.fixed.grid)),))


def test_matches_are_where_the_motion_puts_them(phantom):
    matched = load_pipeline("matched_points")
    chains = [_off(phantom, 2.0, -1.5, 1.0), _off(phantom, -1.0, 1.5, -2.0)]
    points = matched.match_points(phantom.fixed, phantom.moving, phantom.fixed_mask, chains)
    off = np.linalg.norm(phantom.motion.map_points(points.fixed) - points.moving, axis=1)
    assert len(off) > 0.1 * points.tried > 50
    assert np.median(off) < 0.4 and off.mean() < 0.5
    assert phantom.fixed_mask.grid.contains(points.fixed).all()


def test_matches_that_disagree_are_dropped(phantom):
    matched = load_pipeline("matched_points")
    far = [_off(phantom, 0.0, 0.0, 0.0), _off(phantom, 0.0, 0.0, 14.0)]
    with pytest.raises(ImageError, match=r"none of .* points was matched alike from all 2 results"):
        matched.match_points(phantom.fixed, phantom.moving, phantom.fixed_mask, far)


def test_the_command_tells_the_better_method(phantom, tmp_path, monkeypatch, capsys):
    matched = load_pipeline("matched_points")
    for role in ("fixed", "moving", "fixed_mask", "moving_mask"):
        write_image(getattr(phantom, role), tmp_path / f"{role}.mha")
    roles = [str(tmp_path / f"{role}.mha") for role in ("fixed", "moving")]
    masks = [f"--{role}-mask={tmp_path / f'{role}_mask.mha'}" for role in ("fixed", "moving")]
    asked = ["--matchers", "regnet_multistage_oneshot", "--methods", "affine", "regnet_multistage_oneshot"]
    monkeypatch.setattr("sys.argv", ["matched_points", *roles, *masks, *asked, "--out", str(tmp_path / "points")])
    assert matched.main() == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    affine, network = (float(row[3].split("/")[0]) for row in rows)
    assert network < 0.5 * affine
    read = [read_landmarks(tmp_path / "points" / f"{role}_landmarks.txt").points for role in ("fixed", "moving")]
    assert len(read[0]) == len(read[1]) > 50
    monkeypatch.setattr("sys.argv", ["matched_points", roles[0], str(tmp_path / "none.mha"), *masks])
    assert matched.main() == 1
    assert "none.mha" in capsys.readouterr().err
