"""The volumes of a report's viewer: images and transforms on one grid along the patient's axes, small enough to ship.

The viewer's grid has cubic voxels along x, y, z of LPS, whatever the directions of the images are, so that its three
orthogonal cuts are the axial, coronal and sagittal plane. Values are kept as codes of 8 bits: 0 says that there is
no value (outside an image), 1 to 255 go evenly from the lowest to the highest value.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.anatomy.display import find_display
from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.landmarks import Landmarks, check_landmarks
from regnet_itk.errors import ImageError, ParameterError, PointsError
from regnet_itk.figures.slices import choose_planes
from regnet_itk.metrics.measures import landmark_differences
from regnet_itk.stages.guides import Guides, mark
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.trust.error_map import ErrorMap

LONGEST_AXIS = 192
"""Voxels along the longest axis of the viewer's grid, at most."""

MARGIN = 20.0
"""mm that are shown around the fixed mask."""

LOG_JACOBIAN_RANGE = (-3.0, 3.0)
"""log2 det J between which the viewer tells differences: an eighth to eight times the volume."""

FOLDED = 1
"""The code of det J <= 0, where there is no logarithm."""

_MOST_VOXELS = 4_000_000  # of a volume; two images and two methods then make a page of some 13 MB
CODES = 255
"""Of a value; the code 0 says that there is none."""
_OUTSIDE = -3.0e38  # what the resampling puts outside an image; no value of one


@dataclass(frozen=True)
class ViewerMethod:
    """What one method, or one stage of a registration, found.

    Parameters
    ----------
    name : str
        As it is shown; no two methods of a pair have the same.
    chain : TransformChain
        T, fixed to moving, mm, LPS. Warped image, displacement and det J are computed from it.
    expected_error : ErrorMap, optional
        How far it may be from the truth.
    """

    name: str
    chain: TransformChain
    expected_error: ErrorMap | None = None


MASKS = (
    ("fixed", "ignore", "ignored in the fixed image"),
    ("moving", "ignore", "ignored in the moving image"),
    ("fixed", "rigid", "rigid"),
    ("fixed", "volume", "volume kept"),
    ("fixed", "sliding", "slides"),
)
"""The masks whose outlines can be shown: of which image, which of its guides, and how they are called."""


@dataclass(frozen=True, eq=False)
class ViewerPair:
    """A pair of images with the methods that registered it.

    Parameters
    ----------
    name : str
        As it is shown.
    fixed, moving : Image
        As they were registered, on their own grids.
    methods : sequence of ViewerMethod
        In the order in which they are shown; may be empty.
    fixed_mask : Image, optional
        The viewer shows its surroundings; without one, the body of a CT, or the whole fixed image.
    fixed_landmarks, moving_landmarks : Landmarks, optional
        Point i of one corresponds to point i of the other.
    fixed_guides, moving_guides : Guides of Image
        Masks of what was ignored and protected, whose outlines can be shown.

    Raises
    ------
    ParameterError
        If two methods have the same name.
    PointsError
        If there are landmarks of one image only, or their numbers differ.
    """

    name: str
    fixed: Image
    moving: Image
    methods: Sequence[ViewerMethod] = ()
    fixed_mask: Image | None = None
    fixed_landmarks: Landmarks | None = None
    moving_landmarks: Landmarks | None = None
    fixed_guides: Guides[Image] = field(default_factory=Guides, kw_only=True)
    moving_guides: Guides[Image] = field(default_factory=Guides, kw_only=True)

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ParameterError(f"pair '{self.name}': two methods have the same name: {', '.join(names)}")
        if (self.fixed_landmarks is None) != (self.moving_landmarks is None):
            raise PointsError(f"pair '{self.name}': landmarks are needed for both images, or for none")
        if self.fixed_landmarks is not None and self.moving_landmarks is not None:
            check_landmarks(self.fixed_landmarks, self.moving_landmarks)


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on the viewer's grid, as codes.

    Parameters
    ----------
    name : str
        "fixed", "moving", or the method's number with "warped", "displacement", "jacobian" or "error": "0-warped".
        "masks", and the method's number with it, has a bit for each of `MASKS`: -1 stands for no registration.
    codes : ndarray of uint8, shape (z, y, x)
        0 for no value; 1 to 255 for `low` to `high`.
    low, high : float
        The values of codes 1 and 255.
    """

    name: str
    codes: npt.NDArray[np.uint8] = field(repr=False)
    low: float
    high: float

    def values(self) -> FloatArray:
        """Return the values (z, y, x), NaN where there is none."""
        values = self.low + (self.codes.astype(float) - 1) * (self.high - self.low) / (CODES - 1)
        values[self.codes == 0] = np.nan
        return values

    def packed(self) -> bytes:
        """Return the codes compressed without loss: each less its prediction from its neighbours, then zlib.

        The prediction is the median of the three planes through the voxels before it: a + b - ab for each two axes.
        """
        codes = np.pad(self.codes, ((1, 0), (1, 0), (1, 0))).astype(np.int16)
        x, y, z = codes[1:, 1:, :-1], codes[1:, :-1, 1:], codes[:-1, 1:, 1:]
        planes = x + y - codes[1:, :-1, :-1], x + z - codes[:-1, 1:, :-1], y + z - codes[:-1, :-1, 1:]
        low, high = np.minimum(planes[0], planes[1]), np.maximum(planes[0], planes[1])
        predicted = np.maximum(low, np.minimum(high, planes[2]))
        rest = (self.codes - predicted).astype(np.uint8)  # modulo 256
        strategies = zlib.Z_HUFFMAN_ONLY, zlib.Z_FILTERED  # noise does not repeat; smooth fields do
        return min((_deflated(rest.tobytes(), strategy) for strategy in strategies), key=len)


def _deflated(data: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(data) + packer.flush()


def _volume(name: str, values: npt.NDArray[Any], span: tuple[float, float], known: npt.NDArray[np.bool_]) -> Volume:
    low, high = span
    scaled = (np.clip(values, low, high) - low) * ((CODES - 1) / (high - low))
    codes = np.where(known, np.rint(scaled) + 1, 0)
    return Volume(name, codes.astype(np.uint8), low, high)


def choose_viewer_grid(pair: ViewerPair, longest_axis: int = LONGEST_AXIS) -> Grid:
    """Return the grid on which a pair is shown: cubic voxels along the axes of LPS.

    It covers the fixed mask and 20 mm around it; without a mask, the body in a CT; else the whole fixed image. Its
    voxels are no finer than the image's finest, and no more than `longest_axis` along an axis.

    Parameters
    ----------
    pair : ViewerPair
    longest_axis : int
        Voxels along the longest axis, at most.
    """
    low, high = _shown_box(pair)
    extent = high - low
    spacing = max(
        min(pair.fixed.grid.spacing), float(extent.max()) / longest_axis, math.cbrt(float(extent.prod()) / _MOST_VOXELS)
    )
    nx, ny, nz = (max(1, math.ceil(e / spacing - 1e-6)) for e in extent)
    x, y, z = (low + high - (np.array([nx, ny, nz]) - 1) * spacing) / 2
    return Grid((nx, ny, nz), (spacing, spacing, spacing), (float(x), float(y), float(z)))


def _shown_box(pair: ViewerPair) -> tuple[FloatArray, FloatArray]:
    """Return the lowest and the highest x, y, z in mm of what is shown."""
    from regnet_itk.anatomy.lungs import body_mask

    corners = pair.fixed.grid.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    region, margin = pair.fixed_mask, MARGIN
    if region is None and is_hounsfield(pair.fixed):
        try:
            region, margin = body_mask(pair.fixed), 0.0
        except ImageError:  # no body: the whole image
            return low, high
    if region is None or not region.array.any():
        return low, high
    inside = region.grid.part(bounding_box(region.array != 0, 0)).corners()
    return np.maximum(low, inside.min(axis=0) - margin), np.minimum(high, inside.max(axis=0) + margin)


def sample_volumes(pair: ViewerPair, grid: Grid) -> Iterator[Volume]:
    """Yield the volumes of a pair: fixed, moving, then of each method the warped image, |u|, log2 det J, the error.

    Images that are finer than the grid are smoothed for it, so that voxels between its own count too.

    Parameters
    ----------
    pair : ViewerPair
    grid : Grid
        See `choose_viewer_grid`.
    """
    display = find_display(pair.fixed, pair.moving)
    fixed = _smoothed(pair.fixed, grid).resampled(grid, default=_OUTSIDE).array
    inside = fixed > _OUTSIDE / 2
    yield _volume("fixed", fixed, display.span if display else _span(pair.fixed), inside)
    smooth, span = _smoothed(pair.moving, grid), display.span if display else _span(pair.moving)
    moving = smooth.resampled(grid, default=_OUTSIDE).array
    yield _volume("moving", moving, span, moving > _OUTSIDE / 2)
    yield from _masks_volume(pair, -1, TransformChain(), grid)
    for number, method in enumerate(pair.methods):
        yield from _masks_volume(pair, number, method.chain, grid)
        field = method.chain.displacement_on(grid)
        warped = smooth.resampled(grid, field.to_sitk_transform(), default=_OUTSIDE).array
        yield _volume(f"{number}-warped", warped, span, warped > _OUTSIDE / 2)
        length = np.linalg.norm(field.vectors, axis=-1)
        longest = float(length[inside].max(initial=0.0))
        yield _volume(f"{number}-displacement", length, (0.0, max(longest, 1e-3)), inside)
        yield _jacobian_volume(f"{number}-jacobian", field.jacobian_determinant(), inside)
        if method.expected_error is not None:
            expected = method.expected_error.expected_at(grid.points())
            highest = float(np.nanmax(expected, initial=0.0))
            yield _volume(f"{number}-error", expected, (0.0, max(highest, 1e-3)), inside & np.isfinite(expected))


def _masks_volume(pair: ViewerPair, number: int, chain: TransformChain, grid: Grid) -> Iterator[Volume]:
    """Yield the masks that are there, those of the moving image through T."""
    codes = np.zeros(grid.shape, dtype=np.uint8)
    for bit, (role, name, _) in enumerate(MASKS):
        mask = getattr(pair.fixed_guides if role == "fixed" else pair.moving_guides, name)
        if mask is not None:
            through = chain.displacement_on(grid).to_sitk_transform() if role == "moving" else None
            codes |= (mark(mask).resampled(grid, through, order=0).array > 0).astype(np.uint8) << bit
    if codes.any():
        yield Volume(f"{number}-masks", codes, 0.0, 1.0)


def _jacobian_volume(name: str, determinant: FloatArray, inside: npt.NDArray[np.bool_]) -> Volume:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.nan_to_num(np.log2(determinant), nan=0.0)
    volume = _volume(name, logarithm, LOG_JACOBIAN_RANGE, inside)
    codes = np.where(volume.codes == FOLDED, FOLDED + 1, volume.codes)  # nearly folded is not folded
    codes[inside & (determinant <= 0)] = FOLDED
    return Volume(name, codes, volume.low, volume.high)


def _smoothed(image: Image, grid: Grid) -> Image:
    """Return the image without the detail that is finer than the voxels of `grid`."""
    wanted = min(grid.spacing)
    sigmas = [0.4 * math.sqrt(max(0.0, wanted**2 - spacing**2)) / spacing for spacing in image.grid.spacing[::-1]]
    if max(sigmas) < 0.1:  # of no effect
        return image
    return Image(ndimage.gaussian_filter(image.array.astype(np.float32), sigmas, mode="nearest"), image.grid)


def _span(image: Image) -> tuple[float, float]:
    """Return the range of values that is worth telling apart."""
    low, high = np.percentile(image.array[::2, ::2, ::2].astype(float), (0.1, 99.9)).tolist()
    return low, high if high > low else low + 1.0


def choose_first_shown(pair: ViewerPair, grid: Grid) -> tuple[int, int, int]:
    """Return the voxel (x, y, z) of the viewer's grid whose three planes are shown first."""
    mask = pair.fixed_mask.resampled(grid, order=0) if pair.fixed_mask is not None else None
    axial, coronal, sagittal = choose_planes(grid, mask)
    return sagittal.index, coronal.index, axial.index


def measure_residuals(pair: ViewerPair, method: ViewerMethod | None) -> FloatArray | None:
    """Return y_i - T(x_i) (n, 3) in mm of a method, or of the identity; None without landmarks."""
    if pair.fixed_landmarks is None or pair.moving_landmarks is None:
        return None
    chain = method.chain if method is not None else None
    return -landmark_differences(chain, pair.fixed_landmarks.points, pair.moving_landmarks.points)
