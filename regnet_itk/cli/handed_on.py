"""What ``regnet-itk transform`` hands on to elastix's transformix, as only that can evaluate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from regnet_itk.cli.transform_request import Request
    from regnet_itk.data.image_nd import ImageND
    from regnet_itk.run_log import RunLog
    from regnet_itk.transforms.transformix import Applied, ElastixTransform

LARGEST_LABEL = 2**24
"""transformix interpolates in float32, which holds the whole numbers up to this one."""


def hand_on(asked: Request, why: str, names: Sequence[str], stage: Path, log: RunLog) -> None:
    """Let transformix do what the command says.

    Parameters
    ----------
    asked : Request
    why : str
        What it is that regnet-itk cannot evaluate.
    names : sequence of str
        Of the results of the images, without suffix.
    stage : Path
        The folder to write to.
    log : RunLog

    Raises
    ------
    RegNetItkError
        If transformix cannot do it either.
    """
    from regnet_itk.data.pixel_types import cast_values, pixel_type_of
    from regnet_itk.data.suffixes import RESULT_FORMATS
    from regnet_itk.errors import ParameterError
    from regnet_itk.transforms.resampling_keys import result_pixel_type
    from regnet_itk.transforms.transformix import ElastixTransform, Wanted

    _check_asked(asked, why)
    transform = ElastixTransform(asked.transform)
    keys = transform.parameters
    suffix, compress = keys.get_str("ResultImageFormat", "mhd"), keys.get_bool("CompressResultImage", False)
    if suffix not in RESULT_FORMATS:
        raise ParameterError(f"{keys.source}: there is no ResultImageFormat '{suffix}'")
    log.note(f"transform {asked.transform}: {why}, handed on to transformix")
    wanted = Wanted(
        field=asked.points == "all", determinant=bool(asked.determinant), matrices=bool(asked.matrices)
    )  # fmt: skip
    images = [_read_image(path, transform, asked) for path in asked.images]
    done: Applied | None = None
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        done = transform.apply(
            image, Wanted() if number else wanted, changes=_changes(asked, keys), threads=asked.threads
        )  # fmt: skip
        assert done.warped is not None
        pixel_type = pixel_type_of(image.array) if asked.label else result_pixel_type(keys)
        values = cast_values(done.warped.array, pixel_type)
        _write(replace(done.warped, array=values).to_sitk(), stage / f"{name}.{suffix}", compress)
        if number == 0:
            _write_all(done, stage, suffix, compress)
    if done is None and (wanted.field or wanted.determinant or wanted.matrices):
        _write_all(transform.apply(None, wanted, threads=asked.threads), stage, suffix, compress)
    if asked.points not in (None, "all"):
        mapped = transform.apply(
            images[0] if images else None, Wanted(points=_points_text(asked, transform)), threads=asked.threads
        )  # fmt: skip
        (stage / "outputpoints.txt").write_text(str(mapped.points), encoding="utf-8")


def _check_asked(asked: Request, why: str) -> None:
    """Refuse what transformix does not have."""
    from regnet_itk.errors import TransformError

    for flag, given in {"--like": asked.like, "--moving-to-fixed": asked.back, "--mask": asked.mask,
                        "--fixed-series": asked.fixed_series,
                        "--label linear": asked.label == "linear"}.items():  # fmt: skip
        if given:
            raise TransformError(
                f"'{asked.transform}' is of {why}, which only transformix can evaluate; it has no {flag}"
            )


def _changes(asked: Request, keys: Any) -> dict[str, Any]:
    """Return the keys that flags take the place of."""
    if asked.label:
        return {"ResampleInterpolator": "FinalNearestNeighborInterpolator", "DefaultPixelValue": 0}
    changes: dict[str, Any] = {} if asked.default is None else {"DefaultPixelValue": asked.default}
    if asked.order is not None:
        changes["FinalBSplineInterpolationOrder"] = asked.order
        if "BSpline" not in keys.get_str("ResampleInterpolator", "FinalBSplineInterpolator"):
            changes["ResampleInterpolator"] = "FinalBSplineInterpolator"
    return changes


def _read_image(path: str, transform: ElastixTransform, asked: Request) -> ImageND:
    from regnet_itk.data.image import check_finite
    from regnet_itk.data.image_files import read_image_nd
    from regnet_itk.errors import ImageError

    image = read_image_nd(path, "input image")
    if image.array.ndim != transform.dimension:
        raise ImageError(
            f"input image '{path}' has {image.array.ndim} dimensions, and the transform is of {transform.dimension}"
        )
    if not asked.label:
        check_finite(image.array, f"input image '{path}'")
    if asked.label and not np.array_equal(image.array, np.rint(image.array)):
        raise ImageError(
            f"{path}: the segmentation holds values that are not whole numbers; leave --label away for images"
        )
    if asked.label and np.abs(image.array).max() > LARGEST_LABEL:
        raise ImageError(
            f"{path}: the segmentation holds labels above {LARGEST_LABEL}, which transformix cannot keep; give them "
            "smaller numbers"
        )
    return image


def _points_text(asked: Request, transform: ElastixTransform) -> str:
    from regnet_itk.data.landmarks import elastix_points_text, read_landmarks, read_points_text
    from regnet_itk.transforms.resampling_keys import read_resampling_grid

    if transform.dimension != 3:
        return read_points_text(str(asked.points), transform.dimension)
    return elastix_points_text(read_landmarks(str(asked.points), read_resampling_grid(transform.parameters)))


def _write_all(done: Applied, stage: Path, suffix: str, compress: bool) -> None:
    for name, image in done.images.items():
        _write(image, stage / f"{name}.{suffix}", compress)


def _write(image: Any, path: Path, compress: bool) -> None:
    import SimpleITK as sitk

    from regnet_itk.outputs import write_whole

    write_whole(path, lambda part: sitk.WriteImage(image, str(part), useCompression=compress))
