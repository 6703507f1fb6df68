"""What is to be ignored has no force: in elastix's stages, in RegNet's, in judgements and in the expected error."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from command import call
from elastix_cases import QUICK
from scipy import ndimage
from scipy.spatial.transform import Rotation

import regnet_itk
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.parameters import read_parameter_map
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.guides import Guides
from regnet_itk.stages.ignored import Ignored
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()))
GRID = Grid((44, 40, 30), (2.0, 2.2, 3.0), (-30.0, 50.0, 200.0), TURNED)
SHIFT = np.array([3.0, -2.0, 2.5])
SHEARED = MatrixTransform(
    [[1.05, 0.12, -0.05], [-0.1, 0.94, 0.08], [0.06, -0.03, 1.08]], translation=[9.0, -14.0, 20.0]
)
FAST = QUICK.with_(MaximumNumberOfIterations=150, NumberOfSpatialSamples=1500)


def texture(seed: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=GRID.shape), 2.0)
    return (100.0 * smooth / smooth.std()).astype(np.float32)


def moved(array: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return I(x - by): the moving image of T(x) = x + by."""
    u = np.broadcast_to(-by, (*GRID.shape, 3)).astype(np.float64)
    return Image(array, GRID).resampled(GRID, DisplacementField(u, GRID).to_sitk_transform(), order=3).array


def left_half() -> np.ndarray:
    half = np.zeros(GRID.shape, dtype=np.uint8)
    half[:, :, : GRID.size[0] // 2] = 1
    return half


def misled() -> tuple[Image, Image, Image]:
    """Return images that moved by SHIFT in one half, and otherwise in the other, which is brighter; and its mask."""
    body, lesion, half = texture(0), 3 * texture(1), left_half()
    fixed = np.where(half, lesion, body)
    moving = np.where(half, moved(lesion, -SHIFT), moved(body, SHIFT))
    return Image(fixed, GRID), Image(moving.astype(np.float32), GRID), Image(half, GRID)


def translation_of(pair: ImagePair, **keys) -> np.ndarray:
    found = ElastixStage(FAST.with_(**keys)).run(pair, TransformChain(), RunOptions(threads=1))
    return found.chain.map_points(GRID.centre()) - GRID.centre()


@pytest.mark.parametrize("masks", ["none", "fixed", "both"])
def test_elastix_stages_do_not_see_it_with_and_without_masks(masks):
    fixed, moving, half = misled()
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[3:-3, 3:-3, 3:-3] = 1
    given = {"none": {}, "fixed": {"fixed_mask": inside}, "both": {"fixed_mask": inside, "moving_mask": inside}}[masks]
    pair = ImagePair(fixed, moving, **{role: Image(mask, GRID) for role, mask in given.items()})
    assert np.linalg.norm(translation_of(pair) - SHIFT) > 1.0  # it misleads
    ignoring = replace(pair, fixed_guides=Guides(ignore=half), moving_guides=Guides(ignore=half))
    assert np.linalg.norm(translation_of(ignoring) - SHIFT) < 0.3


@pytest.mark.parametrize("masks", [0, 1, 2])
def test_each_of_several_images_leaves_it_out(masks):
    fixed, moving, half = misled()
    everywhere = Image(np.ones(GRID.shape, dtype=np.uint8), GRID)
    pair = ImagePair(
        fixed, moving, more_fixed=(fixed,), more_moving=(moving,), fixed_guides=Guides(ignore=half),
        fixed_mask=everywhere if masks else None, more_fixed_masks=(everywhere,) if masks > 1 else (),
    )  # fmt: skip
    keys = {"Registration": "MultiMetricMultiResolutionRegistration", "Metric": ["AdvancedMeanSquares"] * 2}
    each = ("FixedImagePyramid", "MovingImagePyramid", "Interpolator", "ImageSampler")
    several = {name: [QUICK.get_str(name)] * 2 for name in each}
    assert len(pair.without_ignored().fixed_masks) == 2
    assert np.linalg.norm(translation_of(pair, **keys, **several) - SHIFT) < 0.3


def test_images_with_fewer_voxels_leave_it_out_too():
    fixed, moving, half = misled()
    pair = ImagePair(fixed, moving, fixed_guides=Guides(ignore=half), moving_guides=Guides(ignore=half))
    assert np.linalg.norm(translation_of(pair, RegNetMostVoxels=12_000) - SHIFT) < 0.3


def test_a_stage_is_judged_by_what_is_left():
    fixed, moving, half = misled()
    right = TransformChain((Link(MatrixTransform(np.eye(3), translation=SHIFT)),))
    pair = ImagePair(fixed, moving)
    ignoring = replace(pair, fixed_guides=Guides(ignore=half), moving_guides=Guides(ignore=half))
    assert ignoring.coarse.look(right.map_points).similarity > 0.85
    assert pair.coarse.look(right.map_points).similarity < 0.7


def test_what_the_moving_image_ignores_is_seen_through_the_whole_transform():
    place = GRID.index_to_point([26, 20, 15])
    ball = (np.linalg.norm(GRID.points() - place, axis=-1) < 9).astype(np.uint8)
    initial = TransformChain((Link(SHEARED),))
    field_grid = GRID.isotropic(2.5)
    wanted = np.linalg.solve(SHEARED.matrix, place - SHEARED.offset) - GRID.index_to_point([12, 18, 14])
    u = DisplacementField(np.broadcast_to(wanted, (*field_grid.shape, 3)).astype(np.float32).copy(), field_grid)
    there = np.linalg.norm(initial.map_points(field_grid.points() + wanted) - place, axis=-1) < 6
    assert there.sum() > 20
    u.vectors[there] += 5.0  # what the moving image seemed to say
    found = Ignored(moving=Image(ball, GRID)).carry_on(u, initial, around=10.0)
    np.testing.assert_allclose(found.vectors, np.broadcast_to(wanted, u.vectors.shape), atol=0.02)


@pytest.fixture(scope="module")
def tumour():
    """A phantom whose tumour has grown: fixed, moving, their masks, the phantom, the distance to what is ignored."""
    phantom = make_phantom(3, spacing=(3.0, 3.0, 3.5), extent=(290, 220, 200))
    fixed, moving = phantom.fixed, phantom.moving
    in_moving, in_fixed = moving.grid.points(), phantom.motion.map_points(fixed.grid.points())
    place = np.array([70.0, 5.0, 0.0])
    before, after = (np.linalg.norm(p - place, axis=-1) < r for p, r in ((in_fixed, 9.0), (in_moving, 24.0)))
    masks = Image(before.astype(np.uint8), fixed.grid), Image(after.astype(np.uint8), moving.grid)
    fixed = Image(np.where(before, 40, fixed.array).astype(np.int16), fixed.grid)
    moving = Image(np.where(after, 40, moving.array).astype(np.int16), moving.grid)
    away = np.linalg.norm(in_fixed - place, axis=-1) - 24.0
    return fixed, moving, *masks, phantom, away


@pytest.fixture(scope="module")
def registered(tumour):
    fixed, moving, in_fixed, in_moving, _, _ = tumour
    initial = TransformChain((Link(MatrixTransform(np.eye(3))),))
    stage = read_parameter_map("regnet_multistage")
    guides = {"fixed_guides": Guides(ignore=in_fixed), "moving_guides": Guides(ignore=in_moving)}
    return [regnet_itk.register(fixed, moving, [stage], initial=initial, threads=1, **given) for given in ({}, guides)]


def test_the_field_around_a_tumour_is_better_if_it_is_ignored(tumour, registered):
    *_, phantom, away = tumour
    inside, near = away < 0, (away > 0) & (away < 15) & (phantom.fixed_mask.array > 0)
    without, ignoring = (
        np.linalg.norm(result.displacement.vectors - phantom.displacement.vectors, axis=-1) for result in registered
    )
    assert ignoring[inside].mean() < 0.6 * without[inside].mean()
    assert ignoring[near].mean() < 0.95 * without[near].mean()
    assert registered[1].displacement.jacobian_determinant().min() > 0


def test_nothing_is_said_of_the_error_there_and_that_is_told(tumour, registered):
    *_, away = tumour
    without, ignoring = registered
    inside = tumour[0].grid.index_to_point(np.argwhere(away < -3)[:, ::-1])
    assert np.isfinite(without.expected_error.expected_at(inside)).mean() > 0.9
    assert np.isnan(ignoring.expected_error.expected_at(inside)).mean() > 0.9
    assert ignoring.summary()["expected_error"]["region"] == "foreground (less what is ignored)"
    assert ignoring.expected_error.mean < without.expected_error.mean


def test_a_key_leaves_the_masks_aside(tumour, registered):
    fixed, moving, _, in_moving, _, _ = tumour
    stage = read_parameter_map("regnet_multistage").with_(RegNetIgnore=False, RegNetInstanceIterations=0)
    affine = QUICK.with_(MaximumNumberOfIterations=1)
    results = [
        regnet_itk.register(fixed, moving, [stage, affine], threads=1, moving_guides=guides)
        for guides in (Guides(), Guides(ignore=in_moving))
    ]
    first, second = (result.chain.links[0].transform.vectors for result in results)
    np.testing.assert_array_equal(first, second)


@pytest.fixture
def files(tmp_path):
    fixed, moving, half = misled()
    for name, image in (("fixed", fixed), ("moving", moving), ("half", half)):
        write_image(image, tmp_path / f"{name}.mha")
    other = Grid(GRID.size, GRID.spacing, (0.0, 0.0, 0.0), GRID.direction)
    write_image(Image(np.ones(GRID.shape, dtype=np.uint8), GRID), tmp_path / "all.mha")
    write_image(Image(np.zeros(GRID.shape, dtype=np.uint8), GRID), tmp_path / "empty.mha")
    write_image(Image(np.ones(GRID.shape, dtype=np.uint8), other), tmp_path / "other.mha")
    (tmp_path / "quick.txt").write_text(FAST.with_(MaximumNumberOfIterations=5).to_text())
    return tmp_path


def run(files, *arguments):
    given = "-f", files / "fixed.mha", "-m", files / "moving.mha", "-out", files / "run", "-threads", 1
    return call("run", *given, "-p", files / "quick.txt", *arguments)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-fIgnore", "all.mha"), "the fixed ignore mask covers all of the fixed image, and leaves nothing to compare"),
        (("-mIgnore", "all.mha"), "the moving ignore mask covers all of the moving image"),
        (("-fIgnore", "half.mha", "-fMask", "half.mha"), "covers all of the fixed mask"),
        (("-fIgnore", "empty.mha"), "the fixed ignore mask is empty"),
        (("-fIgnore", "other.mha"), "the fixed ignore mask lies on another grid"),
        (("-fIgnore", "none.mha"), "none.mha"),
        (("-fRigid", "half.mha"), "-fRigid is given, and no stage of this chain follows it"),
        (("-fVolume", "empty.mha"), "the fixed volume mask is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(files, capfd, flags, said):
    arguments = [files / word if word.endswith(".mha") else word for word in flags]
    assert run(files, *arguments) == 1
    errors = capfd.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert not (files / "run").exists()


def test_a_run_records_what_it_ignored(files):
    assert run(files, "-fIgnore", files / "half.mha", "-loglevel", "off") == 0
    record = json.loads((files / "run" / "registration.json").read_text())
    assert record["inputs"]["fixed_ignore"].endswith("half.mha")
