"""A transform of a pair, measured: landmarks and the true displacement as vectors, and all metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regnet_itk.anatomy.hounsfield import AIR, is_hounsfield
from regnet_itk.comparison.records import Measures, Trust
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import check_landmarks, read_landmarks
from regnet_itk.errors import ImageError
from regnet_itk.metrics.measures import ErrorMoments, transform_error
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registered_pair import RegisteredPair, mask_on
from regnet_itk.pairs import Pair
from regnet_itk.stages.base import ImagePair
from regnet_itk.transforms.chain import TransformChain


def measure_transform(
    chain: TransformChain, images: ImagePair, pair: Pair, metrics: Sequence[Metric], threads: int | None = None
) -> Measures:
    """Measure a transform of a pair, through the whole chain.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    images : ImagePair
        With the fixed mask, inside which the measures are taken.
    pair : Pair
        Names the landmarks, the true displacement and the labels.
    metrics : sequence of Metric
    threads : int, optional
        CPU threads; all by default.

    Raises
    ------
    PointsError, TransformError, ImageError
        If one of these cannot be read or does not fit.
    RegistrationError
        If a metric fails.
    """
    registered = _registered_pair(chain, images, pair)
    mapped, differences = _map_landmarks(registered)
    field = _field_error(registered, pair)
    if pair.displacement is not None and any("truth" in metric.needs for metric in metrics):
        registered = replace(registered, truth=read_displacement_field(pair.displacement))
    found = {metric.name: metric.measure(registered) for metric in metrics}
    return Measures(mapped.tolist(), differences.tolist(), field, found, _trust(chain, images, pair, threads))


def _trust(chain: TransformChain, images: ImagePair, pair: Pair, threads: int | None) -> Trust:
    """Return how far the transform is to be trusted, and how far that can be trusted where the truth is known."""
    from regnet_itk.trust.judging import judge_transform

    try:
        judged = judge_transform(images, chain, threads=threads)
    except ImageError:  # an image in which nothing stands out
        return Trust()
    errors, verdict = judged.expected_error, judged.verdict
    found = Trust(verdict.word, "; ".join(verdict.reasons), math.nan if errors.mean is None else errors.mean)
    if pair.displacement is None or errors.mean is None:
        return found
    points = errors.grid.points()[errors.known]
    true = np.linalg.norm(
        chain.map_points(points) - read_displacement_field(pair.displacement).map_points(points), axis=1
    )
    off = np.abs(errors.expected[errors.known] - true)
    return replace(found, off=float(off.mean()), coverage=float((true <= errors.radius[errors.known]).mean()))


def _registered_pair(chain: TransformChain, images: ImagePair, pair: Pair) -> RegisteredPair:
    """Return the pair with all that is known about it, but for the true displacement, which may be large."""
    fixed, moving = images.fixed, images.moving
    registered = RegisteredPair(
        fixed, moving, chain, images.fixed_mask, images.moving_mask,
        outside=AIR if is_hounsfield(moving) else None,
    )  # fmt: skip
    if (files := pair.judge_landmarks) is not None:
        points = read_landmarks(files[0], fixed.grid), read_landmarks(files[1], moving.grid)
        check_landmarks(*points, fixed.grid, moving.grid)
        registered = replace(registered, fixed_landmarks=points[0], moving_landmarks=points[1])
    if (files := pair.judge_labels) is not None:
        labels: list[Image] = [
            read_image(path, role) for path, role in zip(files, ("fixed labels", "moving labels"), strict=True)
        ]
        registered = replace(registered, fixed_labels=labels[0], moving_labels=labels[1])
    return registered


def _map_landmarks(pair: RegisteredPair) -> tuple[FloatArray, FloatArray]:
    """Return T(x_i) and T(x_i) - y_i, both (n, 3)."""
    if pair.fixed_landmarks is None or pair.moving_landmarks is None:
        return np.zeros((0, 3)), np.zeros((0, 3))
    mapped = pair.chain.map_points(pair.fixed_landmarks.points)
    return mapped, mapped - pair.moving_landmarks.points


def _field_error(registered: RegisteredPair, pair: Pair) -> ErrorMoments | None:
    if pair.displacement is None:
        return None
    truth = read_displacement_field(pair.displacement)
    return transform_error(registered.chain, truth, mask_on(registered.fixed_mask, truth.grid))
