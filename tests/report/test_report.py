"""The report: one file that needs nothing else, whose viewer shows what ITK computes, where it is in the patient."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import SimpleITK as sitk
from browser import Browser, find_chromium
from command import call
from PIL import Image as Picture
from quick_stages import AFFINE
from scipy import ndimage

from regnet_itk.anatomy.lungs import body_mask
from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, place
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import OutputError, ParameterError, PointsError
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registry import register_metric, unregister_metric
from regnet_itk.registration import register
from regnet_itk.report.elements import Column, Figure, Note, Table, Value
from regnet_itk.report.page import write_report
from regnet_itk.report.viewer import ViewerMethod, ViewerPair
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.trust.error_map import ErrorMap

TURN = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.15, 0.3)
FLIPPED = np.reshape(TURN.GetMatrix(), (3, 3)) @ np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]])  # axes along y, -x, z
FIXED = Grid((26, 22, 30), (2.6, 2.1, 1.9), (31.0, -48.0, 120.0), FLIPPED)
CENTRE = FIXED.centre()
_TURNED = Grid((34, 31, 28), (2.0, 2.2, 2.4), (0.0, 0.0, 0.0), np.reshape(TURN.GetMatrix(), (3, 3)).T)
MOVING = replace(_TURNED, origin=tuple(CENTRE + np.array([3.0, -2.0, 1.0]) - _TURNED.centre()))
EVERYWHERE = Image(np.ones(FIXED.shape, np.uint8), FIXED)
AFFINE_LINK = Link(MatrixTransform(np.array([[1.03, 0.02, 0], [0, 0.96, 0.01], [0.02, 0, 1.05]]), CENTRE, [2, -1, 3]))
LUNG = (-600.0, 1500.0)
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def scene(points: np.ndarray, hounsfield: bool = True) -> np.ndarray:
    """Blobs in the patient: dense at the left, front and top; less dense at the right and bottom."""
    values = np.full(points.shape[:-1], -950.0)
    for at, height, width in (((9, -7, 10), 1100.0, 6.0), ((-12, 4, -8), 700.0, 8.0), ((0, 0, 0), 300.0, 15.0)):
        values += height * np.exp(-(((points - CENTRE - at) / width) ** 2).sum(axis=-1) / 2)
    return values if hounsfield else 0.25 * (values + 1000.0)


def folding_field() -> DisplacementField:
    grid = Grid((20, 20, 20), (4.0, 4.0, 4.0), tuple(CENTRE - 38.0))
    at = grid.points() - CENTRE
    u = np.zeros_like(at)
    u[..., 0] = -9.0 * np.tanh(at[..., 0] / 4.0) * np.exp(-(at**2).sum(axis=-1) / 300)  # -9 / 4 mm a mm: folds
    u[..., 2] = 4.0 * np.exp(-(at**2).sum(axis=-1) / 400)
    return DisplacementField(u, grid)


def error_map() -> ErrorMap:
    """An expected error that grows towards the patient's left, on a coarse oblique grid; unknown towards the feet."""
    grid = FIXED.isotropic(4.0)
    at = grid.points() - CENTRE
    index = FIXED.point_to_index(grid.points())
    known = (at[..., 2] > -12.0) & ((index > 2) & (index < np.asarray(FIXED.size) - 3)).all(axis=-1)
    expected = np.where(known, 2.0 + 0.08 * at[..., 0] + 0.02 * at[..., 1], np.nan)
    return ErrorMap(np.stack([expected, 2 * expected], axis=-1).astype(np.float32), grid)


def pair_of(name: str = "rotated </script><pair>", hounsfield: bool = True) -> ViewerPair:
    fixed, moving = (Image(scene(grid.points(), hounsfield).astype(np.float32), grid) for grid in (FIXED, MOVING))
    affine = TransformChain((AFFINE_LINK,))
    folded = affine.then(link_field(folding_field()))
    points = CENTRE + np.array([(9.0, -7.0, 10.0), (-12.0, 4.0, -8.0), (3.0, 2.0, 1.0)])
    moved = points + np.array([(4.0, 0.0, 3.0), (0.0, 5.0, -2.0), (1.0, 1.0, 1.0)])
    methods = [ViewerMethod("affine", affine), ViewerMethod("affine, then a fold", folded, error_map())]
    return ViewerPair(
        name, fixed, moving, methods, EVERYWHERE if hounsfield else None,
        Landmarks(points, ("tip", "base", "middle")), Landmarks(moved),
    )  # fmt: skip


TABLE = Table(
    "Errors & <times>",
    [Column("method"), Column("TRE", "mm", "lowest"), Column("NCC", "", "highest", 3), Column("time", "s")],
    [
        ["b10", Value(2.5, "2.50 ± 0.1"), 0.9, 12],
        ["b9", Value(11.0, "11.00 ± 3.0"), 0.95, None],
        ["<b>a</b>", Value(3.0, "3.00 ± 0.2"), -0.1, float("nan")],
    ],
    "Lower is better.",
)


def png() -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", (4, 3), "red").save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def pair() -> ViewerPair:
    return pair_of()


@pytest.fixture(scope="module")
def page(pair, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "a report.html"
    write_report(
        path, "Tom & <Jerry>", tables=[TABLE], figures=[Figure("Red", png(), 'a "red" square')],
        pairs=iter([pair, pair_of("no CT", hounsfield=False)]), summary="1 < 2",
        notes=[Note("Versions", {"regnet-itk": "<0.1>"}), Note("Map", '(Metric "A")\n(B 2)', folded=True)],
    )  # fmt: skip
    return path


class Elements(HTMLParser):
    """All elements of a page with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))
        self.open = True

    def handle_data(self, data):
        if self.open:
            self.found[-1][2].append(data)

    def handle_endtag(self, tag):
        self.open = False

    def of(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


def unpacked(text: str, size: list[int]) -> np.ndarray:
    """The codes (z, y, x) of a volume, decoded voxel by voxel."""
    nx, ny, nz = size
    rest = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(nz, ny, nx).tolist()
    codes = np.zeros((nz + 1, ny + 1, nx + 1), int).tolist()
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                x, y, z = codes[k + 1][j + 1][i], codes[k + 1][j][i + 1], codes[k][j + 1][i + 1]
                guesses = x + y - codes[k + 1][j][i], x + z - codes[k][j + 1][i], y + z - codes[k][j][i + 1]
                codes[k + 1][j + 1][i + 1] = (rest[k][j][i] + sorted(guesses)[1]) % 256
    return np.array(codes)[1:, 1:, 1:]


class Decoded:
    """A page's data, read without a browser."""

    def __init__(self, path: Path) -> None:
        scripts = Elements(path.read_text(encoding="utf-8")).of("script")
        self.texts = {attributes["id"]: text for attributes, text in scripts if "id" in attributes}
        self.data = json.loads(self.texts["viewer-data"])

    def pair(self, number: int = 0) -> dict:
        return self.data["pairs"][number]

    def reference(self, number: int = 0) -> sitk.Image:
        """An image on the viewer's grid."""
        told = self.pair(number)
        image = sitk.Image(told["size"], sitk.sitkFloat32)
        image.SetSpacing([told["spacing"]] * 3)
        image.SetOrigin(told["origin"])
        return image

    def codes(self, name: str, number: int = 0) -> np.ndarray:
        return unpacked(self.texts[f"pair-{number}-{name}"], self.pair(number)["size"])

    def values(self, name: str, number: int = 0) -> tuple[np.ndarray, float]:
        """The values, NaN where there are none, and the step between two of them."""
        head, codes = self.pair(number)["volumes"][name], self.codes(name, number)
        step = (head["high"] - head["low"]) / 254
        return np.where(codes == 0, np.nan, head["low"] + (codes - 1) * step), step


@pytest.fixture(scope="module")
def decoded(page) -> Decoded:
    return Decoded(page)


# The file


def test_nothing_is_loaded_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    for _, attributes, _ in elements.found:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"https?:|@import|url\((?!#)", re.sub(r">[A-Za-z0-9+/=]{100,}<", "><", text))
    policy = [a["content"] for a, _ in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy[0]


def test_texts_are_shown_as_they_are(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    assert elements.of("title")[0][1].strip() == "Tom & <Jerry>"
    assert "Errors & <times>" in [text for _, text in elements.of("h2")]
    assert (elements.of("p")[0][1], elements.of("dd")[0][1]) == ("1 < 2", "<0.1>")
    assert elements.of("pre")[0][1] == '(Metric "A")\n(B 2)'
    image = elements.of("img")[0][0]
    assert image["alt"] == 'a "red" square'
    assert base64.b64decode(image["src"].partition("base64,")[2]) == png()


def test_table_cells_and_the_best_of_them(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    cells = elements.of("td")
    assert [text.strip() for _, text in cells] == [
        "2.50 ± 0.1", "0.900", "12", "11.00 ± 3.0", "0.950", DASH, "3.00 ± 0.2", f"{MINUS}0.100", DASH,
    ]  # fmt: skip
    assert [number for number, (attributes, _) in enumerate(cells) if "best" in attributes["class"]] == [0, 4]
    assert [text for _, text in elements.of("th")][4:] == ["b10", "b9", "<b>a</b>"]
    assert "mm" in [text for _, text in elements.of("span")]


def test_volumes_are_what_itk_resamples(pair, decoded):
    reference = decoded.reference()
    assert decoded.pair()["spacing"] == min(FIXED.spacing)
    fixed = sitk.GetArrayFromImage(
        sitk.Resample(pair.fixed.to_sitk(), reference, sitk.Transform(), sitk.sitkLinear, -9e9)
    )
    inside = fixed > -5000
    compare(decoded.values("fixed"), fixed, inside)
    transforms = {"moving": sitk.Transform(3, sitk.sitkIdentity)}
    transforms |= {f"{n}-warped": method.chain.to_sitk() for n, method in enumerate(pair.methods)}
    for name, transform in transforms.items():
        warped = sitk.Resample(pair.moving.to_sitk(), reference, transform, sitk.sitkLinear, -9e9)
        warped = sitk.GetArrayFromImage(warped)
        compare(decoded.values(name), warped, warped > -5000)
    for number, method in enumerate(pair.methods):
        field = sitk.TransformToDisplacementField(
            method.chain.to_sitk(), sitk.sitkVectorFloat64, reference.GetSize(), reference.GetOrigin(),
            reference.GetSpacing(), reference.GetDirection(),
        )  # fmt: skip
        length = np.linalg.norm(sitk.GetArrayFromImage(field), axis=-1)
        compare(decoded.values(f"{number}-displacement"), length, inside)
        determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
        check_jacobian(decoded, number, determinant, inside)


def test_the_expected_error_is_where_it_belongs(pair, decoded):
    known = ~np.isnan(error_map().expected)
    image = place(
        sitk.GetImageFromArray(np.where(known, error_map().expected, -9e6).astype(np.float32)), error_map().grid
    )
    wanted = sitk.GetArrayFromImage(sitk.Resample(image, decoded.reference(), sitk.Transform(), sitk.sitkLinear, -9e6))
    values, step = decoded.values("1-error")
    clear = np.isfinite(values) & (wanted > 0)
    assert clear.mean() > 0.05
    assert np.abs(values - wanted)[clear].max() < 0.51 * step + 1e-3
    assert not np.isfinite(values[ndimage.binary_erosion(wanted < -8e6, iterations=3)]).any()
    assert "0-error" not in decoded.pair()["volumes"]
    assert decoded.pair()["methods"][0]["worst"] == []
    worst = decoded.pair()["methods"][1]["worst"][0]
    assert worst["expected_mm"] == pytest.approx(np.nanmax(error_map().expected), abs=0.01)


def compare(told: tuple[np.ndarray, float], expected: np.ndarray, known: np.ndarray) -> None:
    values, step = told
    agree = np.isfinite(values) == known
    assert agree.mean() > 0.9995  # ITK's rounding at the very border
    known = known & agree & (expected < 500)
    assert 0.2 < known.mean() < 0.999
    assert np.abs(values - expected)[known].max() < 0.51 * step + 1e-3 * np.abs(expected[known]).max()
    assert np.ptp(expected[known]) > 20 * step


def check_jacobian(decoded: Decoded, number: int, determinant: np.ndarray, inside: np.ndarray) -> None:
    """Away from the border of the grid, where ITK's differences are others."""
    core = np.zeros_like(inside)
    core[1:-1, 1:-1, 1:-1] = inside[1:-1, 1:-1, 1:-1]
    codes, (values, step) = decoded.codes(f"{number}-jacobian"), decoded.values(f"{number}-jacobian")
    clear = core & (np.abs(determinant) > 1e-3)
    np.testing.assert_array_equal(codes[clear] == 1, determinant[clear] <= 0)
    shown = core & (determinant > 0.13) & (determinant < 7.9)
    assert np.abs(values[shown] - np.log2(determinant[shown])).max() < 0.51 * step + 1e-3
    assert decoded.pair()["methods"][number]["folded"] == (codes == 1).sum()
    assert bool((codes == 1).any()) == (number == 1)


def test_residuals_are_from_the_mapped_to_the_moving_landmark(pair, decoded):
    told = decoded.pair()
    x, y = pair.fixed_landmarks.points, pair.moving_landmarks.points
    np.testing.assert_allclose(told["landmarks"], x, atol=1e-3)
    np.testing.assert_allclose(told["before"], y - x, atol=2e-3)
    for method, entry in zip(pair.methods, told["methods"], strict=True):
        mapped = np.array([method.chain.to_sitk().TransformPoint(point) for point in x])
        np.testing.assert_allclose(entry["residuals"], y - mapped, atol=2e-3)


def test_the_mask_and_its_surroundings_are_shown(pair, tmp_path):
    mask = np.zeros(FIXED.shape, np.uint8)
    mask[12:15, 9:13, 11:14] = 1
    marked = replace(pair, fixed_mask=Image(mask, FIXED), methods=())
    write_report(tmp_path / "a.html", "a", pairs=[marked])
    told = Decoded(tmp_path / "a.html").pair()
    low, s = np.array(told["origin"]), told["spacing"]
    high = low + (np.array(told["size"]) - 1) * s
    points = FIXED.points()[mask > 0]
    reach = 20 + 3 * max(FIXED.spacing)
    box = np.array([FIXED.corners().min(axis=0), FIXED.corners().max(axis=0)])
    assert (low - s <= np.maximum(points.min(axis=0) - 18, box[0] + s)).all()
    assert (high + s >= np.minimum(points.max(axis=0) + 18, box[1] - s)).all()
    assert (low >= np.maximum(points.min(axis=0) - reach, box[0] - s)).all()
    assert (high <= np.minimum(points.max(axis=0) + reach, box[1] + s)).all()
    shown = low + np.array(told["shown"]) * s
    assert "cut to the fixed mask and 20 mm around it" in told["remark"]
    assert mask[tuple(np.rint(FIXED.point_to_index(shown)).astype(int)[::-1])] == 1


def test_without_a_mask_the_body_of_a_ct_is_shown_and_the_whole_of_another_image(pair, decoded, tmp_path):
    write_report(tmp_path / "a.html", "a", pairs=[replace(pair, fixed_mask=None)])
    told = Decoded(tmp_path / "a.html").pair()
    points = FIXED.points()[body_mask(pair.fixed).array]
    low = np.array(told["origin"])
    high = low + (np.array(told["size"]) - 1) * told["spacing"]
    assert np.abs(points.min(axis=0) - low).max() < 5
    assert np.abs(points.max(axis=0) - high).max() < 5
    assert np.prod(told["size"]) < 0.5 * np.prod(decoded.pair(0)["size"])
    assert decoded.pair(1)["size"] == decoded.pair(0)["size"]
    assert "cut to the body" in told["remark"]
    assert "cut to" not in decoded.pair(1)["remark"]


def test_fine_images_are_smoothed_for_a_coarse_viewer(tmp_path):
    """Of noise, what is shown is the mean of the voxels nearby; of a ramp, its value."""
    grid = Grid((64, 60, 56), (1.0, 1.0, 1.0), (-30.0, -30.0, -30.0))
    ramp = -800 + 8.0 * grid.points()[..., 0]
    noisy = ramp + np.random.default_rng(0).normal(0, 100, grid.shape)
    write_report(
        tmp_path / "a.html", "a", pairs=[ViewerPair("a", Image(noisy, grid), Image(noisy, grid))], longest_axis=16
    )
    decoded = Decoded(tmp_path / "a.html")
    told = decoded.pair()
    assert max(told["size"]) == 16
    x = told["origin"][0] + np.arange(told["size"][0]) * told["spacing"]
    difference = decoded.values("fixed")[0] - (-800 + 8.0 * x)
    inside = difference[1:-1, 1:-1, 2:-2]
    assert abs(inside.mean()) < 5
    assert inside.std() < 25
    assert "resampled to cubes of 4 mm" in told["remark"]


def test_a_large_pair_stays_small(tmp_path):
    """The volumes of the viewer have a limit, whatever the image's size."""
    grid = Grid((400, 400, 400), (0.8, 0.8, 0.8))
    wide = Image(np.broadcast_to(np.float32(0), grid.shape), grid)
    from regnet_itk.report.viewer import choose_viewer_grid

    assert np.prod(choose_viewer_grid(ViewerPair("a", wide, wide)).size) < 4.2e6
    assert max(choose_viewer_grid(ViewerPair("a", wide, wide)).size) <= 192


def test_what_cannot_be_reported_leaves_nothing(pair, tmp_path):
    with pytest.raises(OutputError, match=r"name an \.html file"):
        write_report(tmp_path / "a.pdf", "a")
    with pytest.raises(OutputError, match="there is no folder"):
        write_report(tmp_path / "none" / "a.html", "a")
    with pytest.raises(ParameterError, match="cannot be read"):
        write_report(tmp_path / "a.html", "a", figures=[Figure("a", tmp_path / "none.png", "")])
    with pytest.raises(ParameterError, match="neither PNG, SVG nor JPEG"):
        write_report(tmp_path / "a.html", "a", figures=[Figure("a", b"GIF89a", "")])
    with pytest.raises(ParameterError, match="at least 16"):
        write_report(tmp_path / "a.html", "a", pairs=[pair], longest_axis=3)
    with pytest.raises(ParameterError, match="2 cells for 1 columns"):
        Table("a", [Column("b")], [["c", 1]])
    with pytest.raises(ParameterError, match="two methods have the same name"):
        replace(pair, methods=[pair.methods[0]] * 2)
    with pytest.raises(PointsError, match="for both images"):
        replace(pair, moving_landmarks=None)
    with pytest.raises(PointsError, match="3 fixed and 2 moving"):
        replace(pair, moving_landmarks=Landmarks(np.zeros((2, 3))))
    (tmp_path / "b.html").mkdir()
    with pytest.raises(OutputError, match="there is a folder of that name"):
        write_report(tmp_path / "b.html", "a")
    assert [file.name for file in tmp_path.iterdir()] == ["b.html"]


def test_a_page_without_pairs_has_no_viewer(tmp_path):
    write_report(tmp_path / "a.html", "a", tables=[TABLE])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "viewer-data" not in text
    assert len(text) < 15_000


# The page in a browser

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")
PIXELS = (
    "(() => {{ const c = document.querySelectorAll('canvas.{kind}')[{n}];"
    " return [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; }})()"
)
READY = "document.getElementById('viewer').dataset.state === 'ready'"


class Viewer:
    """The page under test, in a browser, beside what it should show."""

    def __init__(self, browser: Browser, decoded: Decoded, pair: ViewerPair) -> None:
        self.browser, self.decoded, self.pair = browser, decoded, pair
        self.at = list(decoded.pair()["shown"])

    def pixels(self, panel: int = 0, kind: str = "image") -> np.ndarray:
        self.browser.wait(READY)
        width, height, values = self.browser.value(PIXELS.format(kind=kind, n=panel))
        return np.array(values).reshape(height, width, 4)

    def cut(self, array: np.ndarray, panel: int) -> np.ndarray:
        x, y, z = self.at
        return (array[z], array[::-1, y], array[::-1, :, x])[panel]

    def grey(self, name: str, level: float, width: float, number: int = 0) -> np.ndarray:
        values = self.decoded.values(name, number)[0]
        return np.clip(np.rint(((values - level) / width + 0.5) * 255), 0, 255)

    def check_grey(self, name: str, window: tuple[float, float] = LUNG, panels=(0, 1, 2), number: int = 0) -> None:
        expected = self.grey(name, *window, number=number)
        for panel in panels:
            shown, wanted = self.pixels(panel), self.cut(expected, panel)
            outside = np.isnan(wanted)
            assert shown.shape[:2] == wanted.shape
            assert (shown[outside] == 0).all()
            assert (shown[~outside][:, 3] == 255).all()
            assert np.abs(shown[~outside][:, :3] - wanted[~outside][:, None]).max() <= 1
            assert np.ptp(wanted[~outside]) > 60

    def mode(self, name: str) -> None:
        self.browser.click(f"input[name=mode][value={name}]")
        assert self.browser.value("document.querySelector('input[name=mode]:checked').value") == name

    def choose(self, select: str, value: str) -> None:
        self.browser.value(
            f"(() => {{ const s = document.getElementById('{select}'); s.value = '{value}';"
            "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def set(self, field: str, value: float) -> None:
        self.browser.value(
            f"(() => {{ const s = document.getElementById('{field}'); s.value = {value};"
            "s.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )


@pytest.fixture(scope="module")
def browser():
    opened = Browser(find_chromium())
    yield opened
    opened.close()


@pytest.fixture
def viewer(browser, page, pair, decoded):
    browser.open(page)
    browser.wait(READY)
    yield Viewer(browser, decoded, pair)
    assert browser.complaints() == []


@needs_browser
def test_it_opens_with_the_last_method_in_three_planes(viewer):
    assert viewer.browser.value("document.querySelectorAll('.panel').length") == 3
    assert viewer.browser.value("document.querySelector('input[name=method]:checked').nextSibling.textContent") == (
        "affine, then a fold"
    )
    viewer.check_grey("1-warped")


@needs_browser
def test_letters_are_on_the_side_of_the_patient_that_they_name(viewer):
    """The dense blob is at the patient's left, front and top, however the image's axes run."""
    viewer.mode("fixed")
    viewer.choose("landmark", "0")  # "tip", in the middle of that blob
    towards = {"R": (-1, 0), "L": (1, 0), "A": (-1, 1), "P": (1, 1), "F": (-1, 2), "H": (1, 2)}
    side = np.array([9, -7, 10])
    for panel in range(3):
        brightness = viewer.pixels(panel)[..., 0]
        row, column = np.unravel_index(brightness.argmax(), brightness.shape)
        share = {"left": 1 - column / brightness.shape[1], "right": column / brightness.shape[1],
                 "top": 1 - row / brightness.shape[0], "bottom": row / brightness.shape[0]}  # fmt: skip
        for edge, near in share.items():
            letter = viewer.browser.value(f"document.querySelectorAll('.edge.{edge}')[{panel}].textContent")
            sign, axis = towards[letter]
            assert (near > 0.5) == (sign * side[axis] > 0), (panel, edge, letter)


@needs_browser
def test_wheel_keys_and_slider_scroll(viewer):
    browser = viewer.browser
    viewer.mode("fixed")
    browser.wheel(".panel:nth-child(1) .stage", 120)  # down is towards the feet
    browser.wait(READY)
    viewer.at[2] -= 1
    viewer.check_grey("fixed")
    browser.click(".panel:nth-child(2) .image")
    for key, step in (("ArrowUp", 1), ("ArrowUp", 1), ("PageDown", -10), ("ArrowDown", -1)):
        browser.key(key)
        viewer.at[1] += step
    middle = [n // 2 for n in viewer.decoded.pair()["size"]]
    viewer.at[0], viewer.at[2] = middle[0], viewer.decoded.pair()["size"][2] - 1 - middle[2]
    viewer.check_grey("fixed")
    browser.key("Home")
    viewer.at[1] = 0
    assert (viewer.pixels(1) == 0).mean() > 0.5  # only a corner of the turned image is there
    browser.click(".panel:nth-child(3) input[type=range]")
    viewer.at[0] = round((viewer.decoded.pair()["size"][0] - 1) / 2)
    browser.wait(f"document.querySelectorAll('.panel input')[2].value == {viewer.at[0]}")
    viewer.check_grey("fixed", panels=(2,))
    browser.value("document.querySelectorAll('.panel input')[2].focus()")
    browser.key("ArrowUp")
    viewer.at[0] += 1
    viewer.check_grey("fixed", panels=(2,))


@needs_browser
def test_a_click_in_one_plane_moves_the_others(viewer):
    browser, size = viewer.browser, viewer.decoded.pair()["size"]
    viewer.mode("fixed")
    browser.centre(".panel:nth-child(2) .image")
    box = browser.value("(() => {const b = document.querySelectorAll('.image')[1].getBoundingClientRect();"
                        "return [b.x, b.y, b.width, b.height]})()")  # fmt: skip
    column, row = 11, 13
    browser.click_at(box[0] + (column + 0.5) * box[2] / size[0], box[1] + (row + 0.5) * box[3] / size[2])
    viewer.at[0], viewer.at[2] = column, size[2] - 1 - row
    viewer.check_grey("fixed")
    position = viewer.decoded.pair()["origin"][0] + column * viewer.decoded.pair()["spacing"]
    readout = browser.value("document.getElementById('readout').textContent")
    assert readout.startswith(f"{abs(position):.1f} {'R' if position < 0 else 'L'}, ")
    value = viewer.decoded.values("fixed")[0][viewer.at[2], viewer.at[1], viewer.at[0]]
    assert f"fixed {round(value)} HU".replace("-", MINUS) in readout


@needs_browser
def test_every_mode_shows_its_values(viewer):
    decoded = viewer.decoded
    fixed, warped = (decoded.values(name)[0] for name in ("fixed", "1-warped"))
    viewer.mode("moving")
    viewer.check_grey("moving")
    viewer.mode("difference")
    check_colours(viewer, (fixed - warped + 500) / 1000, "RdBu_r")
    viewer.mode("checkerboard")
    viewer.set("tile", 10)
    edge = 10 / decoded.pair()["spacing"]
    for panel in range(3):
        pictures = [viewer.cut(viewer.grey(name, *LUNG), panel) for name in ("fixed", "1-warped")]
        rows, columns = (np.floor(np.arange(n) / edge) for n in pictures[0].shape)
        wanted = np.where((rows[:, None] + columns) % 2 == 1, pictures[1], pictures[0])
        inside = np.isfinite(wanted)
        assert np.abs(viewer.pixels(panel)[inside][:, 0] - wanted[inside]).max() <= 1
        assert np.nanmax(np.abs(pictures[0] - pictures[1])) > 20
    viewer.set("opacity", 100)
    viewer.mode("displacement")
    viewer.set("range", 8)
    check_colours(viewer, decoded.values("1-displacement")[0] / 8, "viridis")
    viewer.mode("error")
    assert viewer.browser.value("document.getElementById('range').valueAsNumber") == 3
    check_colours(viewer, decoded.values("1-error")[0] / 3, "magma")
    viewer.mode("jacobian")
    folded = decoded.codes("1-jacobian") == 1
    check_colours(viewer, np.where(folded, np.nan, (decoded.values("1-jacobian")[0] + 1) / 2), "PuOr")
    place = np.argwhere(folded)[folded.sum() // 2][::-1]
    viewer.choose("crosshair", "")
    go_to(viewer, place)
    marked = viewer.pixels(0)[viewer.cut(folded, 0)]
    assert len(marked) > 3
    assert {tuple(colour) for colour in marked.tolist()} == {(0, 0, 0, 255), (255, 224, 0, 255)}
    assert f"{folded.sum()} voxels" in viewer.browser.value("document.getElementById('meaning').textContent")


def check_colours(viewer: Viewer, share: np.ndarray, name: str) -> None:
    palette = matplotlib.colormaps[name](range(256), bytes=True).astype(int)
    for panel in range(3):
        wanted = viewer.cut(share, panel)
        known = np.isfinite(wanted)
        index = np.clip(np.rint(wanted[known] * 255), 0, 255).astype(int)
        off = np.abs(viewer.pixels(panel)[known] - palette[index]).max(axis=-1)
        assert off.max() <= 6  # a neighbouring colour, where rounding decides
        assert (off == 0).mean() > 0.98
        assert len(np.unique(index)) > 15


def go_to(viewer: Viewer, index) -> None:
    for axis, panel in ((0, 2), (1, 1), (2, 0)):
        viewer.browser.value(
            f"(() => {{ const s = document.querySelectorAll('.panel input')[{panel}]; s.value = {index[axis]};"
            "s.dispatchEvent(new Event('input')); })()"
        )
    viewer.at = [int(i) for i in index]


@needs_browser
def test_keys_switch_methods_modes_and_back_to_fixed(viewer):
    browser = viewer.browser
    browser.click(".panel:nth-child(1) .image")
    size = viewer.decoded.pair()["size"]
    viewer.at[0], viewer.at[1] = size[0] // 2, size[1] // 2
    browser.key("ArrowLeft")
    viewer.check_grey("0-warped")
    browser.key("ArrowLeft")
    viewer.check_grey("moving")
    browser.key("ArrowRight")
    browser.key("1")
    viewer.check_grey("fixed")
    browser.key("3")
    viewer.check_grey("0-warped")
    browser.key("f")
    viewer.check_grey("fixed")
    browser.key("f")
    viewer.check_grey("0-warped")
    browser.click("input[name=method][value='1']")
    viewer.check_grey("1-warped")


@needs_browser
def test_windows(viewer):
    viewer.mode("fixed")
    told = viewer.decoded.pair()
    tip = (np.array(told["landmarks"][0]) - told["origin"]) / told["spacing"]
    go_to(viewer, np.rint(tip))  # where there is soft tissue
    viewer.choose("window", "soft")
    viewer.check_grey("fixed", (40.0, 400.0), panels=(0,))
    viewer.set("level", -500)
    viewer.set("width", 900)
    viewer.check_grey("fixed", (-500.0, 900.0), panels=(0,))
    assert viewer.browser.value("document.getElementById('window').value") == "own"
    viewer.choose("window", "auto")
    values = viewer.decoded.values("fixed")[0]
    shown, inside = viewer.pixels(0)[..., 0], np.isfinite(viewer.cut(values, 0))
    assert np.ptp(shown[inside]) > 100
    assert viewer.browser.value("document.getElementById('level').valueAsNumber") < 0


@needs_browser
def test_landmarks_lie_where_they_should(viewer):
    """The cross at the fixed landmark, the circle at the end of y - T(x); none when they are switched off."""
    browser, told = viewer.browser, viewer.decoded.pair()
    browser.click("#crosshair")
    viewer.choose("landmark", "0")
    viewer.set("slab", 1.5)
    start, size = np.array(told["landmarks"][0]), np.array(told["size"])
    for method in (1, 0):
        browser.click(f"input[name=method][value='{method}']")
        ends = [start, start + told["methods"][method]["residuals"][0]]
        cross, circle = ((end - told["origin"]) / told["spacing"] + 0.5 for end in ends)
        for panel, (across, down) in enumerate(((0, 1), (0, 2), (1, 2))):
            overlay = viewer.pixels(panel, "overlay")
            scale = overlay.shape[1] / size[across]
            at, to = (spot[[across, down]] * scale for spot in (cross, circle))
            if panel:  # head up
                at[1], to[1] = overlay.shape[0] - at[1], overlay.shape[0] - to[1]
            blue = np.argwhere((overlay[..., 2] > 180) & (overlay[..., 0] < 130) & (overlay[..., 3] > 150))
            orange = np.argwhere((overlay[..., 0] > 200) & (overlay[..., 2] < 70) & (overlay[..., 3] > 150))
            np.testing.assert_allclose(blue.mean(axis=0)[::-1] + 0.5, at, atol=1.5)
            rim = np.abs(np.linalg.norm(orange[:, ::-1] + 0.5 - to, axis=1) - 4) < 1.6
            assert rim.sum() > 12
            assert np.linalg.norm(to - at) > 4  # the ends can be told apart
        mean = np.linalg.norm(told["methods"][method]["residuals"], axis=1).mean()
        assert f"error {mean:.2f} ±" in browser.value("document.getElementById('errors').textContent")
    browser.click("#landmarks")
    assert (viewer.pixels(0, "overlay") == 0).all()


@needs_browser
def test_the_worst_places_are_listed_and_lead_there(viewer):
    told = viewer.decoded.pair()
    worst = told["methods"][1]["worst"][0]
    viewer.choose("worst", "0")
    viewer.pixels(0)
    place = [round((p - o) / told["spacing"]) for p, o in zip(worst["point"], told["origin"], strict=True)]
    shown = [viewer.browser.value(f"document.querySelectorAll('.panel input')[{n}].valueAsNumber") for n in (2, 1, 0)]
    assert shown == place
    told_there = f"expected error {worst['expected_mm']:.1f} mm"  # once it is decoded, which may be after the images
    viewer.browser.wait(f"document.getElementById('readout').textContent.includes({told_there!r})")
    viewer.browser.click("input[name=method][value='0']")
    assert viewer.browser.value("document.querySelector('.for-worst').hidden")
    viewer.choose("pair", "1")
    viewer.browser.click("input[name=method][value='1']")
    assert not viewer.browser.value("document.querySelector('label.for-error').hidden")


@needs_browser
def test_all_methods_side_by_side(viewer):
    viewer.choose("layout", "coronal")
    viewer.pixels(3)
    titles = viewer.browser.value("[...document.querySelectorAll('.panel b')].map((b) => b.textContent)")
    assert titles == ["fixed", "no registration", "affine", "affine, then a fold"]
    for panel, name in enumerate(("fixed", "moving", "0-warped", "1-warped")):
        wanted, shown = viewer.cut(viewer.grey(name, *LUNG), 1), viewer.pixels(panel)[..., 0]
        inside = np.isfinite(wanted)
        assert np.abs(shown[inside] - wanted[inside]).max() <= 1
    viewer.browser.wheel(".panel:nth-child(4) .stage", -120)
    viewer.at[1] += 1
    wanted = viewer.cut(viewer.grey("fixed", *LUNG), 1)
    assert np.abs(viewer.pixels(0)[..., 0] - wanted)[np.isfinite(wanted)].max() <= 1


@needs_browser
def test_another_pair_has_its_own_units(viewer):
    viewer.choose("pair", "1")
    viewer.pixels(0)
    viewer.mode("fixed")
    browser = viewer.browser
    browser.wait("document.getElementById('window').value === 'auto'")
    level, width = (browser.value(f"document.getElementById('{name}').valueAsNumber") for name in ("level", "width"))
    assert 0 < level < 300
    viewer.at = list(viewer.decoded.pair(1)["shown"])
    viewer.set("level", level)  # as shown, rounded
    viewer.set("width", width)
    viewer.check_grey("fixed", (level, width), number=1)
    assert "HU" not in browser.value("document.getElementById('readout').textContent")


@needs_browser
def test_tables_are_sorted_by_number_by_text_and_back(viewer):
    browser = viewer.browser
    rows = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)"
    for column, first, second in (
        (2, ["b10", "<b>a</b>", "b9"], ["b9", "<b>a</b>", "b10"]),
        (1, ["<b>a</b>", "b9", "b10"], ["b10", "b9", "<b>a</b>"]),
        (4, ["b10", "b9", "<b>a</b>"], ["b10", "b9", "<b>a</b>"]),
    ):
        for expected, state in ((first, "ascending"), (second, "descending")):
            browser.click(f"thead th:nth-child({column}) button")
            found = browser.value(rows)
            assert found[: 1 if column == 4 else 3] == expected[: 1 if column == 4 else 3]
            assert browser.value(f"document.querySelector('thead th:nth-child({column})').ariaSort") == state


@needs_browser
@pytest.mark.parametrize("width", [360, 1000, 2200])
def test_it_fits_windows_of_any_width(viewer, width):
    viewer.browser.resize(width, 800)
    try:
        viewer.browser.wait(f"document.documentElement.scrollWidth <= {width}", 20)
        edges_now = "[...document.querySelectorAll('.stage')].map((s) => s.getBoundingClientRect().width)"
        sizes = viewer.decoded.pair()["size"]
        extents = [sizes[0], sizes[0], sizes[1]]
        scales = f"{edges_now}.map((edge, i) => edge / {extents}[i])"
        # one scale in all planes; the page fits them once it has been laid out anew
        viewer.browser.wait(f"Math.max(...{scales}) - Math.min(...{scales}) < 0.1", 20)
        edges = viewer.browser.value(edges_now)
        assert min(edges) > 120
    finally:
        viewer.browser.resize(1280, 900)


# regnet-itk report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the inputs of a finished run, and the run: a given transform, an elastix and a RegNet stage."""
    home = tmp_path_factory.mktemp("finished")
    phantom = make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0))
    write_phantom(phantom, home)
    sitk.WriteTransform(sitk.TranslationTransform(3, (2.0, -1.0, 3.0)), str(home / "start.tfm"))
    names = ("fixed.mha", "moving.mha", "fixed_mask.mha", "fixed_points.txt", "moving_points.txt", "start.tfm")
    fixed, moving, mask, fixed_points, moving_points, start = (home / name for name in names)
    result = register(
        fixed, moving, [AFFINE, "regnet_multistage"], fixed_mask=mask, initial=start, fixed_landmarks=fixed_points,
        moving_landmarks=moving_points, threads=1, device="cpu",
    )  # fmt: skip
    result.write(home / "run")
    return home


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    """A copy of it, which is where the record says."""
    shutil.copytree(finished, tmp_path / "home")
    record = tmp_path / "home/run/registration.json"
    record.write_text(record.read_text(encoding="utf-8").replace(str(finished), str(tmp_path / "home")))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def table_of(path: Path) -> dict[str, list[float | None]]:
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    number = r'<td class="number[^"]*"(?: data-value="([^"]*)")?>'
    return {name: [float(v) if v else None for v in re.findall(number, rest)] for name, rest in rows}


def test_the_report_of_a_run_says_how_good_each_stage_is(home, capsys):
    assert call("report", "run") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("run/report.html: ")
    assert printed.err == ""
    rows = table_of(home / "run/report.html")
    names = ["no registration", "initial transform", "0 AffineTransform", "1 RegNet regnet_multistage"]
    assert list(rows) == names
    fixed, mask = read_image(home / "fixed.mha"), read_image(home / "fixed_mask.mha").array > 0
    x, y = (np.loadtxt(home / f"{role}_points.txt", skiprows=2) for role in ("fixed", "moving"))
    files = [None, "InitialTransform.0.txt", "TransformParameters.0.txt", "TransformParameters.1.txt"]
    record = json.loads((home / "run/registration.json").read_text(encoding="utf-8"))
    moving = sitk.ReadImage(str(home / "moving.mha"))
    outside = sitk.GetArrayViewFromImage(moving).min()
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        chain = read_chain(home / "run" / file) if file else TransformChain()
        length = np.linalg.norm(chain.map_points(x) - y, axis=1)
        warped = sitk.Resample(moving, fixed.to_sitk(), chain.to_sitk(), sitk.sitkLinear, float(outside))
        correlation = np.corrcoef(sitk.GetArrayFromImage(warped)[mask], fixed.array[mask])[0, 1]
        seconds = record["stages"][number - 2]["seconds"] if number > 1 else None
        told = rows[name]
        assert told[0] == seconds
        assert told[1:4] == pytest.approx([length.mean(), np.median(length), length.max()], abs=1e-3)
        assert told[4] == pytest.approx(correlation, abs=1e-3)
    assert rows[names[-1]][5] == pytest.approx(100 * record["folding"]["share_det_jacobian_not_positive"])
    text = (home / "run/report.html").read_text(encoding="utf-8")
    assert record["stages"][1]["model_sha256"] in text
    assert '(RegNetModel "regnet_multistage")' in html.unescape(text)
    assert record["versions"]["itk-elastix"] in text
    assert str(home.parent) not in text  # folders may be named after patients
    assert all(name in text for name in ("moving.mha", "fixed_mask.mha", "fixed_points.txt"))
    assert record["verdict"]["word"] in text
    assert "Expected error in the fixed mask" in text
    told = Decoded(home / "run/report.html").pair()
    assert "2-error" in told["volumes"]
    assert [method["name"] for method in told["methods"]] == names[1:]
    np.testing.assert_allclose(told["landmarks"], x, atol=1e-3)


def darkness(pair):
    return float(pair.fixed.array.mean() - pair.warped.array.mean())


def test_the_report_of_a_run_follows_a_new_metric(home):
    metrics = [
        Metric("dark", "darker by", darkness, "HU", digits=1, before=False, of_runs=True),
        Metric("hidden", "hidden one", darkness),
        Metric("lacking", "lacks labels", darkness, needs=("labels",), of_runs=True),
    ]
    for metric in metrics:
        register_metric(metric)
    try:
        assert call("report", "run") == 0
    finally:
        for metric in metrics:
            unregister_metric(metric.name)
    text = (home / "run/report.html").read_text(encoding="utf-8")
    assert 'darker by <span class="unit">HU</span>' in text
    assert "hidden one" not in text and "lacks labels" not in text
    told = [cells[-1] for cells in table_of(home / "run/report.html").values()]
    assert told[0] is None and all(isinstance(value, float) for value in told[1:])


@needs_browser
def test_the_report_of_a_run_opens(home, browser):
    assert call("report", "run", "-out", "page.html") == 0
    browser.open(home / "page.html")
    browser.wait(READY)
    assert browser.complaints() == []
    assert "TRE" in browser.value("document.querySelector('table').textContent")


def test_images_that_moved_are_found_beside_the_run_or_given(home, tmp_path, capsys):
    away = tmp_path / "away"
    home.rename(away)
    os.chdir(away)
    assert call("report", "run") == 0  # the folder moved as a whole
    expected = table_of(away / "run/report.html")
    (tmp_path / "else").mkdir()
    for file in away.glob("*.mha"):
        file.rename(tmp_path / "else" / file.name)
    for file in away.glob("*_points.txt"):
        file.unlink()
    (away / "run/report.html").unlink()
    assert call("report", "run") == 1
    assert re.search(r"fixed image is missing: '.*home/fixed\.mha' is no longer there; give it with -f\n",
                     capsys.readouterr().err)  # fmt: skip
    images = ("-f", "../else/fixed.mha", "-m", "../else/moving.mha")
    assert call("report", "run", *images) == 0
    warned = capsys.readouterr().err
    for flag in ("-fMask", "-fp", "-mp"):
        assert f"is no longer there; give {flag} to use it" in warned
    without = table_of(away / "run/report.html")
    for name in ("0 AffineTransform", "1 RegNet regnet_multistage"):
        assert without[name][1:4] == pytest.approx(expected[name][1:4], abs=1e-3)  # as recorded
    assert without["initial transform"][1:4] == pytest.approx(expected["initial transform"][1:4], abs=1e-3)
    assert without["no registration"][1:4] == [None] * 3
    assert without["0 AffineTransform"][4] != expected["0 AffineTransform"][4]  # in the whole image


def test_a_run_whose_record_names_no_files(home, capsys):
    path = home / "run/registration.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["inputs"], record["landmarks_before"]
    for stage in record["stages"]:
        del stage["landmarks"]
    path.write_text(json.dumps(record))
    assert call("report", "run") == 1
    assert "the fixed image is missing: 'run' does not say where it is; give it with -f" in capsys.readouterr().err
    assert call("report", "run", "-f", "fixed.mha", "-m", "moving.mha") == 0
    assert "TRE" not in (home / "run/report.html").read_text(encoding="utf-8").partition("</table>")[0]


def test_what_report_refuses(home, capsys):
    (home / "empty").mkdir()
    (home / "damaged").mkdir()
    (home / "damaged/registration.json").write_text('{"stages": 3}')
    (home / "odd").mkdir()
    record = json.loads((home / "run/registration.json").read_text(encoding="utf-8"))
    (home / "odd/registration.json").write_text(json.dumps({**record, "landmarks_before": {"mean": 1}}))
    (home / "few.txt").write_text("point\n1\n0 0 0\n")
    write_image(Image(np.ones((4, 5, 6), np.int16), Grid((6, 5, 4))), home / "other.mha")
    fixed = read_image(home / "fixed.mha")
    write_image(
        Image(fixed.array[1:], fixed.grid.crop((0, 0, 1), np.array(fixed.grid.size) - (0, 0, 1))), home / "cut.mha"
    )
    before = sorted(home.rglob("*"))
    for words, message in (
        (["empty"], "'empty' has no registration.json: give the output folder of a finished registration"),
        (["nowhere"], "'nowhere' is no folder with a registration.json"),
        (["damaged"], "is damaged, or was not written by regnet-itk run"),
        (["odd"], "is damaged, or was not written by regnet-itk run"),
        (["run", "-f", "other.mha"], "'other.mha' is not the fixed image that was registered: size (6, 5, 4)"),
        (["run", "-f", "cut.mha"], "'cut.mha' is not the fixed image that was registered: size"),
        (["run", "-m", "none.mha"], "moving image 'none.mha' does not exist"),
        (["run", "-fMask", "other.mha"], "the fixed mask lies on another grid"),
        (["run", "-fp", "few.txt"], "1 fixed and"),
        (["run", "-out", "none/page.html"], "there is no folder 'none'"),
        (["run", "-out", "page.txt"], "name an .html file"),
        (["run", "-out", "fixed.mha/page.html"], "there is no folder 'fixed.mha'"),
    ):
        assert call("report", *words) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("regnet-itk: error: ")
        assert printed.err.count("\n") == 1
        assert message in printed.err
    assert sorted(home.rglob("*")) == before
    assert call("report", "run", "-fmask", "fixed_mask.mha") == 2
    assert "did you mean '-fMask'?" in capsys.readouterr().err


def test_the_report_of_a_guided_run_says_so_or_shows_the_judges(home, capsys):
    sentence = "The landmarks guided the registration: their TRE is no measure of it."
    path = home / "run/registration.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["settings"]["guided_by_landmarks"] = True
    path.write_text(json.dumps(record), encoding="utf-8")
    assert call("report", "run") == 0
    assert sentence in (home / "run/report.html").read_text(encoding="utf-8")
    for role in ("fixed", "moving"):
        points = (home / f"{role}_points.txt").read_text(encoding="utf-8").splitlines()
        (home / f"{role}_judges.txt").write_text("\n".join(["point", "3", *points[2:5]]) + "\n")
        record["inputs"][f"{role}_judge_landmarks"] = str(home / f"{role}_judges.txt")
    path.write_text(json.dumps(record), encoding="utf-8")
    assert call("report", "run") == 0
    text = (home / "run/report.html").read_text(encoding="utf-8")
    assert sentence not in text
    assert len(Decoded(home / "run/report.html").pair()["landmarks"]) == 3
    assert call("report", "run", "-fp", "fixed_points.txt", "-mp", "moving_points.txt") == 0
    assert sentence in (home / "run/report.html").read_text(encoding="utf-8")
    capsys.readouterr()
