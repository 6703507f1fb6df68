"""Small images and quick parameter maps of elastix's own, and what elastix's library itself makes of them."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from regnet_itk.parameters import ParameterMap, parse_parameter_text

QUICK = parse_parameter_text(
    """
    (FixedInternalImagePixelType "float")
    (MovingInternalImagePixelType "float")
    (Registration "MultiResolutionRegistration")
    (FixedImagePyramid "FixedSmoothingImagePyramid")
    (MovingImagePyramid "MovingSmoothingImagePyramid")
    (Interpolator "LinearInterpolator")
    (ResampleInterpolator "FinalBSplineInterpolator")
    (Resampler "DefaultResampler")
    (Optimizer "AdaptiveStochasticGradientDescent")
    (Metric "AdvancedMeanSquares")
    (Transform "TranslationTransform")
    (NumberOfResolutions 1)
    (MaximumNumberOfIterations 20)
    (NumberOfSpatialSamples 300)
    (ImageSampler "RandomCoordinate")
    (NewSamplesEveryIteration "true")
    (HowToCombineTransforms "Compose")
    (AutomaticScalesEstimation "true")
    (DefaultPixelValue 0)
    (RandomSeed 1)
    """,
    "quick.txt",
)
SPACING, ORIGIN = (1.5, 2.0, 2.5, 1.0), (3.0, -4.0, 5.0, 0.0)


def several_metrics(*metrics: str, **changes: object) -> ParameterMap:
    """Return a map with several metrics, each with pyramids, a sampler and an interpolator of its own."""
    each = ("FixedImagePyramid", "MovingImagePyramid", "ImageSampler", "Interpolator")
    return QUICK.with_(
        {
            "Registration": "MultiMetricMultiResolutionRegistration",
            "Metric": list(metrics),
            **{key: [QUICK[key][0]] * len(metrics) for key in each},
            **changes,
        }
    )


def texture(shape: tuple[int, ...], seed: int = 0, shift: float = 0.0) -> sitk.Image:
    """Return a texture of int16 on a turned, anisotropic grid with an offset, as elastix users have it.

    Parameters
    ----------
    shape : tuple of int
        (.., z, y, x); with four dimensions, each step in time is the same texture, shifted on.
    seed : int
    shift : float
        Voxels by which the texture is shifted along x.
    """
    rng = np.random.default_rng(seed)
    if len(shape) == 4:
        values = np.stack([_values(shape[1:], np.random.default_rng(seed), shift + t) for t in range(shape[0])])
    else:
        values = _values(shape, rng, shift)
    image = sitk.GetImageFromArray(values, isVector=False)
    d = len(shape)
    turn = np.eye(d)
    c, s = np.cos(0.2), np.sin(0.2)
    turn[:2, :2] = [[c, -s], [s, c]]
    if d == 3:
        c, s = np.cos(0.1), np.sin(0.1)
        turn = turn @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    image.SetSpacing(SPACING[:d])
    image.SetOrigin(ORIGIN[:d])
    image.SetDirection(turn.ravel().tolist())
    return image


def _values(shape: tuple[int, ...], rng: np.random.Generator, shift: float) -> np.ndarray:
    noise = gaussian_filter(rng.normal(size=shape), 2)
    moved = np.roll(noise, round(shift), axis=-1)
    return (moved * 200 / noise.std()).astype(np.int16)


def parameter_object(*maps: ParameterMap) -> itk.ParameterObject:
    """Return maps as the library takes them."""
    found = itk.ParameterObject.New()
    for parameters in maps:
        found.AddParameterMap(dict(parameters.values))
    return found


def run_library(fixed: str | list[str], moving: str | list[str], maps: list[ParameterMap], out: Path, **more: object):
    """Register by elastix's library itself, which writes its files to `out`; return its image and its maps."""
    out.mkdir()
    method = itk.ElastixRegistrationMethod[(itk.Image[itk.F, _dimension(fixed)],) * 2].New()
    for paths, add in ((fixed, method.AddFixedImage), (moving, method.AddMovingImage)):
        for path in [paths] if isinstance(paths, str) else paths:
            add(itk.imread(path, itk.F))
    method.SetParameterObject(parameter_object(*maps))
    method.SetOutputDirectory(str(out))
    for name, value in more.items():
        getattr(method, name)(value)
    method.UpdateLargestPossibleRegion()
    return method.GetOutput(), method.GetTransformParameterObject()


def _dimension(paths: str | list[str]) -> int:
    reader = sitk.ImageFileReader()
    reader.SetFileName(paths if isinstance(paths, str) else paths[0])
    reader.ReadImageInformation()
    return reader.GetDimension()


def numbers_of(found: itk.ParameterObject) -> list[tuple[str, ...]]:
    """Return the parameters of each transform."""
    count = found.GetNumberOfParameterMaps()
    return [found.GetParameterMap(number)["TransformParameters"] for number in range(count)]
