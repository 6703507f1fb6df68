"""What was ignored and protected has outlines in the viewer; those of the moving image lie where T puts them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK as sitk
from browser import Browser, find_chromium
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.report.page import write_report
from regnet_itk.report.viewer import ViewerMethod, ViewerPair, choose_viewer_grid, sample_volumes
from regnet_itk.stages.guides import Guides
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()))
FIXED = Grid((30, 26, 20), (2.0, 2.2, 3.0), (-30.0, 50.0, 200.0), TURNED)
MOVED = MatrixTransform(np.eye(3), translation=[8.0, -6.0, 5.0])
BLUE = (0x56, 0xB4, 0xE9)


def ball(centre: np.ndarray, radius: float) -> Image:
    return Image((np.linalg.norm(FIXED.points() - centre, axis=-1) < radius).astype(np.uint8), FIXED)


@pytest.fixture(scope="module")
def pair() -> ViewerPair:
    image = Image(np.random.default_rng(0).normal(100, 20, FIXED.shape).astype(np.float32), FIXED)
    return ViewerPair(
        "masked", image, image, [ViewerMethod("moved", TransformChain((Link(MOVED),)))],
        fixed_guides=Guides(rigid=ball(FIXED.centre(), 14)), moving_guides=Guides(ignore=ball(FIXED.centre(), 9)),
    )  # fmt: skip


def test_masks_lie_where_simpleitk_resamples_them(pair):
    grid = choose_viewer_grid(pair)
    found = {volume.name: volume.codes for volume in sample_volumes(pair, grid)}
    reference = Image(np.zeros(grid.shape, dtype=np.uint8), grid).to_sitk()
    through = sitk.TranslationTransform(3, MOVED.translation.tolist())
    for name, transform in (("-1-masks", sitk.Transform(3, sitk.sitkIdentity)), ("0-masks", through)):
        for bit, mask, by in (
            (1, pair.moving_guides.ignore, transform),
            (2, pair.fixed_guides.rigid, sitk.Transform()),
        ):
            judge = sitk.Resample(mask.to_sitk(), reference, by, sitk.sitkNearestNeighbor)
            np.testing.assert_array_equal(found[name] >> bit & 1, sitk.GetArrayFromImage(judge))


def test_without_masks_nothing_is_kept_of_them(pair):
    bare = ViewerPair("bare", pair.fixed, pair.moving, pair.methods)
    assert not [volume for volume in sample_volumes(bare, choose_viewer_grid(bare)) if "masks" in volume.name]


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
def test_outlines_can_be_switched_off(pair, tmp_path):
    write_report(tmp_path / "page.html", "masks", pairs=iter([pair]))
    browser = Browser(find_chromium())
    try:
        browser.open(tmp_path / "page.html")
        browser.wait("document.getElementById('viewer').dataset.state === 'ready'")
        assert _count(browser, BLUE, least=20) >= 20
        assert browser.value("document.getElementById('mask-key').textContent") == "ignored in the moving imagerigid"
        browser.click("#masks")
        assert _count(browser, BLUE, least=0) == 0
        assert browser.complaints() == []
    finally:
        browser.close()


def _count(browser: Browser, colour: tuple[int, int, int], least: int) -> int:
    """Return how many pixels of the first plane have a colour, once that is at least so many, or nothing changes."""
    script = (
        "(() => { const c = document.querySelector('canvas.image'), d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4) "
        f"if (d[i] === {colour[0]} && d[i + 1] === {colour[1]} && d[i + 2] === {colour[2]}) n++; return n; }})()"
    )
    for _ in range(50):
        found = int(browser.value(script))
        if (found >= least > 0) or (least == 0 and found == 0):
            return found
        time.sleep(0.1)
    return found
