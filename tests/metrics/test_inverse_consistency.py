"""Inverse consistency: the residual of both ways, judged by SimpleITK; `register` and the program both ways."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from listening import Heard
from quick_stages import AFFINE, REGNET
from transform_cases import CHAINS, FIXED, MOVING, affine, smooth_field

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import ImageError, OutputError, ParameterError, TransformError
from regnet_itk.figures import overview as figures
from regnet_itk.metrics import inverse_consistency as module
from regnet_itk.metrics.inverse_consistency import inverse_consistency
from regnet_itk.parameters import read_parameter_map
from regnet_itk.registration import register
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.inverse import invert_chain, invert_points
from regnet_itk.transforms.matrix import MatrixTransform

GREY = Image(np.random.default_rng(0).integers(0, 200, FIXED.shape).astype(np.int16), FIXED)
MASK = Image((np.random.default_rng(2).random(FIXED.shape) < 0.3).astype(np.uint8) * 7, FIXED)
FORWARD = CHAINS["affine, field"]
BACKWARD = TransformChain(  # nearly its inverse, on voxels of its own
    (Link(MatrixTransform(np.linalg.inv(affine().matrix), affine().centre + affine().translation,
                          -affine().translation + [0.5, -0.4, 0.8])), link_field(smooth_field(4, 5.0, MOVING))),
)  # fmt: skip
WIDE = MOVING.pad((15, 15, 15), (15, 15, 15))
CROPPED = MOVING.crop((9, 3, 6), (10, 20, 11))  # T leads out of it from much of the fixed image


def judged_by_sitk(forward, backward, mask, moving_grid):
    """Return the residuals and points at the voxels of the mask, one by one, and the number of these voxels."""
    both = sitk.CompositeTransform([backward.to_sitk(MOVING), forward.to_sitk(FIXED)])  # the last is applied first
    there, fixed = forward.to_sitk(FIXED), mask.to_sitk()
    moving = Image(np.zeros(moving_grid.shape, np.uint8), moving_grid).to_sitk()
    lengths, points = [], []
    voxels = np.argwhere(mask.array != 0)
    for z, y, x in voxels.tolist():
        point = fixed.TransformIndexToPhysicalPoint((x, y, z))
        index = np.array(moving.TransformPhysicalPointToContinuousIndex(there.TransformPoint(point)))
        if (index >= -0.5).all() and (index < np.array(moving.GetSize()) - 0.5).all():
            lengths.append(np.linalg.norm(np.subtract(both.TransformPoint(point), point)))
            points.append(point)
    return np.array(lengths), np.array(points), len(voxels)


@pytest.mark.parametrize("moving_grid", [WIDE, CROPPED], ids=["all inside", "partly outside"])
@pytest.mark.parametrize("forward", ["affine", "affine, bspline", "affine, field"])
def test_the_residual_is_that_of_itks_composite_transform(forward, moving_grid, monkeypatch):
    monkeypatch.setattr(module, "_SLAB_VOXELS", 1000)  # several slabs, the last one thinner
    found = inverse_consistency(CHAINS[forward], BACKWARD, GREY, moving_grid, MASK)
    lengths, points, voxels = judged_by_sitk(CHAINS[forward], BACKWARD, MASK, moving_grid)
    assert lengths.mean() > 0.5
    assert (found.count, found.region_voxels, found.region) == (len(lengths), voxels, "fixed mask")
    assert found.share_judged == pytest.approx(len(lengths) / voxels)
    expected = lengths.mean(), np.percentile(lengths, 95), lengths.max()
    assert (found.mean, found.p95, found.max) == pytest.approx(expected, abs=2e-4)
    np.testing.assert_allclose(found.where, points[lengths.argmax()], atol=1e-6)
    assert found.share_judged == 1.0 if moving_grid is WIDE else 0.1 < found.share_judged < 0.9


class ExactInverse:
    """Solves T(x) = y for each point."""

    def map_points(self, points):
        return invert_points(FORWARD, points, FIXED)[0]


def test_an_exact_inverse_leaves_nothing():
    matrix = CHAINS["affine"]
    for forward, backward in ((matrix, invert_chain(matrix, FIXED)), (FORWARD, ExactInverse())):
        found = inverse_consistency(forward, backward, GREY, WIDE)
        assert found.max < 1e-3
        assert found.share_judged == 1.0
    assert inverse_consistency(FORWARD, invert_chain(matrix, FIXED), GREY, WIDE).mean > 0.3


def test_points_outside_the_moving_image_are_not_counted():
    half = MOVING.crop((0, 0, 0), (30, 26, 11))
    whole = inverse_consistency(FORWARD, BACKWARD, GREY, WIDE)
    part = inverse_consistency(FORWARD, BACKWARD, GREY, half)
    assert whole.count == whole.region_voxels == FIXED.points().size // 3
    assert part.count == half.contains(FORWARD.map_points(FIXED.points())).sum()
    assert 0 < part.share_judged < 0.8
    away = replace(MOVING, origin=(900.0, 0.0, 0.0))
    with pytest.raises(ImageError, match="takes no voxel of the fixed image into the moving image"):
        inverse_consistency(FORWARD, BACKWARD, GREY, away)


def test_a_mask_that_is_empty_or_elsewhere_is_an_error():
    for mask, message in (
        (Image(np.zeros(FIXED.shape, np.uint8), FIXED), "fixed mask is empty"),
        (Image(np.ones(MOVING.shape, np.uint8), MOVING), "fixed mask lies on another grid"),
    ):
        with pytest.raises(ImageError, match=message):
            inverse_consistency(FORWARD, BACKWARD, GREY, MOVING, mask)


def test_without_a_mask_the_lungs_are_looked_at_or_the_body_or_everything():
    grid = Grid((60, 46, 40), (5.0, 5.5, 6.0), (-150.0, -130.0, 40.0), FIXED.direction)
    x, y, z = np.moveaxis((grid.points() - grid.centre()) @ grid.direction_matrix, -1, 0)
    body = (x / 135) ** 2 + (y / 105) ** 2 < 1
    lungs = ((np.abs(x) - 60) / 45) ** 2 + (y / 65) ** 2 + (z / 80) ** 2 < 1
    solid = np.where(body, 40.0, -1000.0).astype(np.float32)
    chest = Image(np.where(lungs, -850, solid).astype(np.int16), grid)
    identity, shift = TransformChain(), TransformChain((Link(MatrixTransform(np.eye(3), translation=[3.0, 4.0, 0])),))

    def look(image):
        return inverse_consistency(identity, shift, image, grid)

    found = look(chest)
    assert (found.region, found.mean, found.p95, found.max) == pytest.approx(("lungs", 5.0, 5.0, 5.0))
    assert found.region_voxels == pytest.approx(lungs.sum(), rel=0.1)
    found = look(Image(solid, grid))
    assert found.region == "body"
    assert found.region_voxels == pytest.approx(body.sum(), rel=0.1)
    for other in (solid + 2000, np.where(lungs, -900, -1000)):  # no CT; nothing that is no air
        found = look(Image(other, grid))
        assert (found.region, found.region_voxels) == ("fixed image", lungs.size)


def test_of_a_large_region_evenly_spread_voxels_are_looked_at(monkeypatch):
    whole = inverse_consistency(FORWARD, BACKWARD, GREY, CROPPED, MASK)
    monkeypatch.setattr(module, "MAX_POINTS", 1500)
    monkeypatch.setattr(module, "_SLAB_VOXELS", 1000)
    some = inverse_consistency(FORWARD, BACKWARD, GREY, CROPPED, MASK)
    assert some == inverse_consistency(FORWARD, BACKWARD, GREY, CROPPED, MASK)
    assert some.region_voxels == whole.region_voxels > 2000
    assert some.count == round(some.share_judged * 1500) < 1500
    assert some.share_judged == pytest.approx(whole.share_judged, abs=0.03)
    assert (some.mean, some.p95) == pytest.approx((whole.mean, whole.p95), rel=0.05)
    assert 0.8 * whole.max < some.max <= whole.max
    index = MASK.grid.point_to_index(some.where).round().astype(int)
    assert MASK.array[tuple(index[::-1])]


# Registered both ways


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0))


@pytest.fixture(scope="module")
def inputs(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_phantom(phantom, folder)
    (folder / "affine.txt").write_text(AFFINE.to_text())
    (folder / "regnet.txt").write_text(REGNET.to_text())
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    (tmp_path / "in").symlink_to(inputs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


IMAGES = ("-f", "in/fixed.mha", "-m", "in/moving.mha")
EVERYTHING = (*IMAGES, "-fMask", "in/fixed_mask.mha", "-mMask", "in/moving_mask.mha", "-fp", "in/fixed_points.txt",
              "-mp", "in/moving_points.txt", "-p", "in/affine.txt", "-p", "in/regnet.txt", "-threads", 1)  # fmt: skip


def test_the_program_both_ways(here, phantom, capfd):
    assert call("run", *EVERYTHING, "--both-ways", "-out", "out") == 0
    printed = capfd.readouterr()
    names = {path.name for path in (here / "out").iterdir()}
    assert {"backward", "regnet-itk.log"} <= names
    assert {path.name for path in (here / "out/backward").iterdir()} == names - {"backward", "regnet-itk.log"}
    assert not any("part" in name for name in names)
    forward, backward = (read_chain(here / "out" / way / "TransformParameters.1.txt") for way in ("", "backward"))
    record, record_back = (
        json.loads((here / "out" / way / "registration.json").read_text(encoding="utf-8")) for way in ("", "backward")
    )

    x = phantom.fixed.grid.points()[phantom.fixed_mask.array > 0]
    mapped = forward.map_points(x)
    inside = phantom.moving.grid.contains(mapped)
    residual = np.linalg.norm(backward.map_points(mapped) - x, axis=1)[inside]
    told = record["inverse_consistency"]
    assert (told["mean"], told["max"]) == pytest.approx((residual.mean(), residual.max()), abs=1e-3)
    assert (told["count"], told["region"], told["share_judged"]) == (len(residual), "fixed mask", inside.mean())
    assert 0.01 < told["mean"] < 3

    assert record_back["inputs"]["fixed"] == record["inputs"]["moving"]
    assert record_back["inputs"]["moving_mask"] == record["inputs"]["fixed_mask"]
    assert record_back["inputs"]["fixed_landmarks"] == record["inputs"]["moving_landmarks"]
    assert record_back["fixed"]["size"] == list(phantom.moving.grid.size)
    assert "inverse_consistency" not in record_back
    tre = np.linalg.norm(backward.map_points(phantom.moving_landmarks) - phantom.fixed_landmarks, axis=1)
    assert record_back["stages"][1]["landmarks"]["mean"] == pytest.approx(tre.mean(), abs=1e-3)
    before, affine_only, after = (
        entry["mean"] for entry in (record["landmarks_before"], *(s["landmarks"] for s in record_back["stages"]))
    )
    assert before > affine_only > after
    assert after < 0.4 * before
    warped = read_image(here / "out/backward/result.1.mha")
    assert warped.grid.is_close(phantom.moving.grid)
    lungs = phantom.moving_mask.array > 0
    assert np.corrcoef(warped.array[lungs], phantom.moving.array[lungs])[0, 1] > 0.8

    lines = [line for line in printed.err.splitlines() if not re.match(r"stage .*: \d+% ", line)]  # a slow machine
    starts = ["before: TRE", "stage 0 Aff", "stage 1 Reg", "stage 2 backward Aff", "stage 3 backward Reg", "both ways"]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=False)] == starts
    assert f"TRE {tre.mean():.2f} +-" in lines[4]
    assert (
        f"mean {residual.mean():.2f} mm, 95 % {np.percentile(residual, 95):.2f} mm, max {residual.max():.2f}"
        in lines[5]
    )
    log = (here / "out/regnet-itk.log").read_text(encoding="utf-8")
    assert "backward: stage 1: RegNet" in log

    assert call("report", "out") == 0
    page = (here / "out/report.html").read_text(encoding="utf-8")
    assert "Registered both ways: |T_backward(T_forward(x)) - x| mean" in page
    assert f"mean {residual.mean():.2f} mm" in page
    assert call("report", "out/backward") == 0
    assert "Registered both ways" not in (here / "out/backward/report.html").read_text(encoding="utf-8")
    (here / "out/registration.json").write_text(json.dumps({**record, "inverse_consistency": {"mean": 1}}))
    assert call("report", "out") == 1
    assert "is damaged" in capfd.readouterr().err


def test_one_way_writes_and_says_nothing_of_the_other(here, capfd):
    assert call("run", *IMAGES, "-p", "regnet_multistage", "-out", "out") == 0
    assert not (here / "out/backward").exists()
    assert "inverse_consistency" not in (here / "out/registration.json").read_text(encoding="utf-8")
    assert "both ways" not in capfd.readouterr().err


def test_it_may_be_done_again_into_the_same_folder_and_is_written_whole_or_not_at_all(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_registration", lambda *arguments, **_: arguments[4].write_text("a picture"))
    result = register(phantom.fixed, phantom.moving, REGNET, both_ways=True)
    result.write(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    result.write(tmp_path / "out")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert before.keys() == after.keys()
    assert all(after[path] > before[path] for path in before)

    def fail(*_, **__):
        raise OutputError("the disk is full")

    monkeypatch.setattr(type(result.backward), "summary", lambda self: fail() if self is result.backward else {})
    for folder in ("out", "new"):
        with pytest.raises(OutputError, match="disk is full"):
            result.write(tmp_path / folder)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == after
    assert not (tmp_path / "new").exists()


def test_the_way_back_starts_from_the_inverse(phantom):
    centre = phantom.fixed.grid.centre()
    turn = MatrixTransform(np.array([[1.02, 0.05, 0], [-0.04, 0.99, 0.02], [0, 0.01, 0.97]]), centre, [3.0, -2.0, 4.0])
    bend = smooth_field(1, 6.0, Grid((30, 30, 30), (6.0, 6.0, 6.0), tuple(centre - 87)))
    points = {"fixed_landmarks": phantom.fixed_landmarks, "moving_landmarks": phantom.moving_landmarks}
    quick = REGNET.with_(WriteResultImage=False)
    x = phantom.moving.grid.points()
    heard = Heard()
    short = AFFINE.with_(MaximumNumberOfIterations=5)
    for chain, stages, largest in (
        (TransformChain((Link(turn),)), [quick], 1e-9),
        (TransformChain((Link(turn), Link(bend))), [short, quick], 0.3),  # elastix has to start from a field
    ):
        result = register(phantom.fixed, phantom.moving, stages, initial=chain, both_ways=True, events=heard, **points)
        back = result.backward
        start = TransformChain(back.chain.links[: back.initial_links])
        assert np.abs(chain.map_points(start.map_points(x)) - x).max() < largest
        errors = start.map_points(phantom.moving_landmarks) - phantom.fixed_landmarks
        assert back.initial_tre.mean == pytest.approx(np.linalg.norm(errors, axis=1).mean())
        assert back.stages[-1].tre.mean < back.initial_tre.mean
        assert result.inverse_consistency.region == "body"  # lungs that are cut are not found
        assert result.summary()["inverse_consistency"]["mean"] == result.inverse_consistency.mean
    assert sum(line.startswith("both ways: |T_backward(T_forward(x)) - x| mean ") for line in heard.lines) == 2


def test_stages_are_numbered_on(phantom):
    heard = Heard()
    quick = REGNET.with_(WriteResultImage=False)
    result = register(
        phantom.fixed, phantom.moving, quick, both_ways=True, events=heard
    )  # fmt: skip
    assert [number for number, _ in heard.reports] == [0, 1]
    whole = [now.number + now.fraction for now in heard.progresses]
    assert whole == sorted(whole)
    assert {now.name for now in heard.progresses if now.number == 1} == {"backward RegNet regnet_multistage"}
    assert any(line.startswith("backward: stage 0: RegNet regnet_multistage (") for line in heard.lines)
    assert result.backward.pair.fixed.grid == phantom.moving.grid
    assert np.shares_memory(result.backward.pair.fixed.array, phantom.moving.array)
    assert result.backward.backward is None
    alone = register(phantom.moving, phantom.fixed, quick)
    np.testing.assert_array_equal(result.backward.displacement.vectors, alone.displacement.vectors)
    one_way = register(phantom.fixed, phantom.moving, quick)
    assert one_way.backward is None
    assert one_way.inverse_consistency is None


def test_what_is_refused_before_anything_runs(phantom, here, capfd, monkeypatch):
    def forbidden(*_):
        raise AssertionError("elastix was started")

    monkeypatch.setattr(ElastixStage, "run", forbidden)
    fold = np.zeros((20, 20, 20, 3), np.float32)
    fold[..., 0] = np.where(np.arange(20) % 8 < 4, 9.0, -9.0)  # x
    folded = DisplacementField(fold, Grid((20, 20, 20), (6.0,) * 3, tuple(phantom.fixed.grid.centre() - 57)))
    initial = TransformChain((link_field(folded),))
    with pytest.raises(TransformError, match=r"no inverse at \d+\.\d\d% .*: give a matrix, or register one way only"):
        register(phantom.fixed, phantom.moving, AFFINE, initial=initial, both_ways=True)
    bending = read_parameter_map("bspline_1r").with_(
        Registration="MultiMetricMultiResolutionRegistration",
        Metric=["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
    )
    spline = CHAINS["affine, bspline"].links[1]
    with pytest.raises(ParameterError, match=r"way back, from the inverse of the initial transform: .*bending energy"):
        register(phantom.fixed, phantom.moving, bending, initial=TransformChain((spline,)), both_ways=True)
    (here / "out").mkdir()
    (here / "out/backward").write_text("a file")
    assert call("run", *IMAGES, "-p", "in/affine.txt", "--both-ways", "-out", "out") == 1
    assert "out/backward': '" in capfd.readouterr().err
    assert call("run", *IMAGES, "--both-way", "-out", "out") == 2
    assert "did you mean '--both-ways'" in capfd.readouterr().err


def test_a_failure_of_the_way_back_says_so_and_nothing_is_written(here, capfd, monkeypatch):
    run = RegNetStage.run

    def fails_on_the_way_back(stage, pair, *rest):
        if pair.fixed.grid.is_close(read_image("in/moving.mha").grid):
            raise ImageError("what is wrong")
        return run(stage, pair, *rest)

    monkeypatch.setattr(RegNetStage, "run", fails_on_the_way_back)
    assert call("run", *IMAGES, "-p", "in/regnet.txt", "-loglevel", "error", "--both-ways", "-out", "out") == 1
    assert capfd.readouterr().err == "regnet-itk: error: the way back: what is wrong\n"
    assert not (here / "out").exists()


def test_images_of_other_kinds(phantom):
    """Values that are no Hounsfield units: everything is looked at."""
    grey = [Image(np.clip(image.array / 8 + 128, 0, 255).astype(np.uint8), image.grid)
            for image in (phantom.fixed, phantom.moving)]  # fmt: skip
    found = register(*grey, AFFINE.with_(MaximumNumberOfIterations=40), both_ways=True).inverse_consistency
    assert (found.region, found.region_voxels) == ("fixed image", grey[0].array.size)
    assert found.mean < 5
