"""The pipelines of the paper's experiment and of the peers: what they find lies where it should."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from training_cases import PIPELINES, load_pipeline

from regnet_itk.comparison.methods import read_methods
from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.errors import ParameterError
from regnet_itk.registration_inputs import image_pair
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

peers = load_pipeline("peers")

#: about 40 degrees in all, anisotropic, offset
ROTATION = np.linalg.qr(np.array([[1.0, 0.5, -0.3], [-0.4, 1, 0.3], [0.2, -0.4, 1]]))[0]
ROTATION = ROTATION * np.sign(np.diag(ROTATION))
GRID = Grid((40, 34, 28), (2.0, 2.4, 3.0), (12.0, -40.0, 25.0), tuple(map(tuple, ROTATION)))
MATRIX = np.array([[1.02, 0.03, 0], [-0.02, 0.98, 0.04], [0, 0.01, 1.01]])
AFFINE = MatrixTransform(MATRIX, translation=np.array([5.0, -7.0, 3.0]))


@pytest.fixture(scope="module")
def pair():
    """An image with detail everywhere; the fixed one is the moving one at A(x + u(x)), with u pointing along y."""
    rng = np.random.default_rng(0)
    wide = GRID.pad((14, 14, 14), (14, 14, 14))
    detail = ndimage.gaussian_filter(rng.normal(size=wide.shape), 1.6)
    moving = Image((-400 + 280 * detail / detail.std()).astype(np.float32), wide)
    away = GRID.points() - GRID.centre()
    u = np.zeros((*GRID.shape, 3))
    u[..., 1] = 5 * np.exp(-(away**2).sum(axis=-1) / (2 * 22.0**2))
    u[..., 0] = -0.6 * u[..., 1]
    ends = AFFINE.map_points(GRID.points() + u)
    index = wide.point_to_index(ends)
    values = ndimage.map_coordinates(moving.array, np.moveaxis(index[..., ::-1], -1, 0), order=3, mode="nearest")
    inside = Image((np.linalg.norm(away, axis=-1) < 30).astype(np.uint8), GRID)
    return ImagePair(Image(values, GRID), moving), inside, DisplacementField(u, GRID)


@pytest.mark.parametrize(("stage", "module"), [("GreedyStage", "picsl_greedy"), ("ConvexAdamStage", "convexAdam")])
def test_the_field_lies_innermost_in_mm_on_an_oblique_grid(pair, stage, module):
    pytest.importorskip(module)
    images, inside, u = pair
    affine = TransformChain((Link(AFFINE),))
    found = getattr(peers, stage).usual().run(images, affine, RunOptions(threads=1))
    points = GRID.points()[inside.array > 0]
    true = AFFINE.map_points(points + u.at(points))
    error = np.linalg.norm(found.chain.map_points(points) - true, axis=-1).mean()
    before = np.linalg.norm(affine.map_points(points) - true, axis=-1).mean()
    assert before > 3.0
    assert error < 0.35 * before
    assert found.seconds > 0
    assert len(found.chain.links) == 2


def test_voxel_steps_become_mm_along_the_axes_of_space():
    steps = np.zeros((*GRID.shape, 3))
    steps[..., 0] = 2.0  # along the array's first axis, z
    steps[..., 2] = -1.0  # along its last, x
    field = peers.field_of_voxel_steps(steps, GRID)
    start = GRID.index_to_point((3, 4, 5))
    np.testing.assert_allclose(start + field.at(start), GRID.index_to_point((2, 4, 7)), atol=1e-5)


def test_peers_share_the_affine_stage_and_are_told_apart():
    pytest.importorskip("picsl_greedy")
    pytest.importorskip("convexAdam")
    greedy, adam = peers.peer_methods(["greedy", "convexadam"])
    (affine,) = read_methods(["affine"])
    assert greedy.labels == ("affine", "greedy")
    assert greedy.stages[0].fingerprint() == affine.stages[0].fingerprint()
    assert greedy.stages[1].fingerprint() != adam.stages[1].fingerprint()


def test_another_version_of_a_peer_is_not_the_same(monkeypatch):
    stage = peers.GreedyStage.usual()
    monkeypatch.setattr(peers, "version", lambda package: "1.4")
    first = stage.fingerprint()
    assert first == peers.GreedyStage.usual().fingerprint()
    monkeypatch.setattr(peers, "version", lambda package: "1.5")
    assert stage.fingerprint() != first


def test_what_is_not_there_is_told(monkeypatch):
    with pytest.raises(ParameterError, match="known are greedy, convexadam"):
        peers.peer_methods(["ants"])
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"pip install 'regnet-itk\[peers\]'"):
        peers.peer_methods(["greedy"])


def test_the_scripts_say_what_they_take():
    for script in ("peers.py", "paper_table1.py"):
        done = subprocess.run(
            [sys.executable, PIPELINES / script, "--help"], check=True, stdout=subprocess.PIPE, text=True, timeout=120
        )
        assert "--out" in done.stdout


def test_the_paper_s_designs_differ_in_the_model_alone():
    early, one_scale = load_pipeline("paper_table1").design_methods()
    (regnet,) = read_methods(["regnet"])
    assert (early.name, one_scale.name) == ("regnet_early", "regnet_1scale")
    for method in (early, one_scale):
        assert method.stages[0].parameters.values == regnet.stages[0].parameters.values
        assert method.stages[1].settings == replace(regnet.stages[1].settings, model=method.name)


def test_the_pairs_of_the_paper(tmp_path, monkeypatch):
    table = load_pipeline("paper_table1")
    phantoms = list(table.phantom_pairs(tmp_path / "images", range(3, 4), (6.0, 6.0, 6.0), (200.0, 180.0, 160.0)))
    assert [p.name for p in phantoms] == ["followup-3", "breathing-3"]
    assert [p.group for p in phantoms] == ["followup", "breathing"]
    assert all(path.is_file() for p in phantoms for path in p.files().values())
    changed = phantoms[0].fixed.stat().st_mtime_ns
    list(table.phantom_pairs(tmp_path / "images", range(3, 4), (6.0, 6.0, 6.0), (200.0, 180.0, 160.0)))
    assert phantoms[0].fixed.stat().st_mtime_ns == changed  # made once

    source = tmp_path / "ct"
    source.mkdir()
    write_image(read_image(phantoms[0].moving), source / "held_out.mha")
    monkeypatch.setattr(table, "lung_mask", lambda image: Image(np.ones(image.grid.shape, np.uint8), image.grid))
    made = list(table.synthetic_pairs(tmp_path / "images", source, ["held_out"]))
    assert [p.name for p in made] == [f"held_out-{f}" for f in ("low", "medium", "high")]
    inner = tuple(slice(4, -4) for _ in range(3))
    for p in made:
        images, truth = image_pair(p.fixed, p.moving, p.fixed_mask), read_displacement_field(p.displacement)
        assert 4 < np.abs(truth.vectors).max() < 14
        warped = images.moving.resampled(truth.grid, truth.to_sitk_transform(), order=3, default=-1000.0)
        assert np.abs(warped.array - images.fixed.array)[inner].mean() < 12  # the noise of both
