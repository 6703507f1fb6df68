"""A chain of stages that elastix's library computes as a whole, whatever its images and transforms are.

All else in this package is 3D, and evaluates transforms itself. What it cannot evaluate, elastix can still find: the
files that elastix writes are then the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regnet_itk.data.image_nd import ImageND, read_own
from regnet_itk.data.pixel_types import PIXEL_TYPES, cast_values
from regnet_itk.elastix.jobs import Follower, job_folder, run_job, write_images, write_masks, writing_to
from regnet_itk.elastix.registration_log import Fact, RegistrationLog
from regnet_itk.errors import RegistrationError
from regnet_itk.events import Log
from regnet_itk.parameters import ParameterMap, parse_parameter_text

_TEXTS = (".txt", ".toml")
_LOG = "elastix.log"
_INITIAL = re.compile(r'^\(InitialTransformParameterFileName "(.*)"\)$', re.MULTILINE)
"""The spelling of elastix 5.2 and later; before, the other is needed, and without it the start is dropped silently."""


@dataclass(frozen=True, eq=False)
class ChainInputs:
    """What elastix registers.

    Parameters
    ----------
    fixed, moving : tuple of ImageND
        At least one of each; all of the same dimension.
    fixed_masks, moving_masks : tuple of ImageND
        Voxels other than 0 count.
    fixed_points, moving_points : str, optional
        elastix's text of points.
    initial : str, optional
        The elastix transform file to start from.
    """

    fixed: tuple[ImageND, ...]
    moving: tuple[ImageND, ...]
    fixed_masks: tuple[ImageND, ...] = ()
    moving_masks: tuple[ImageND, ...] = ()
    fixed_points: str | None = None
    moving_points: str | None = None
    initial: str | None = None


@dataclass(frozen=True, eq=False)
class ChainStage:
    """What elastix found in one stage.

    Parameters
    ----------
    seconds : float
    warped : ImageND or None
        The moving image after the stage, unless the map says ``(WriteResultImage "false")``.
    facts : mapping
        Of the log: the final metric, the seed ..
    iteration_info : mapping
        The tables of the iterations, by resolution.
    """

    seconds: float
    warped: ImageND | None
    facts: Mapping[str, Fact]
    iteration_info: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ElastixFiles:
    """The files that elastix wrote, but for the result images, the log and the tables.

    Parameters
    ----------
    contents : mapping
        By name; ``TransformParameters.N.txt`` for each stage, and whatever else the maps ask for.
    folder : str
        Where they lay: by it they name each other.
    """

    contents: Mapping[str, bytes]
    folder: str

    def lying_in(self, folder: Path) -> dict[str, bytes]:
        """Return the contents for files that will lie in `folder`."""
        here, there = f"{self.folder}/".encode(), f"{folder}/".encode()
        return {
            name: content.replace(here, there) if name.endswith(_TEXTS) else content
            for name, content in self.contents.items()
        }

    def transform(self, number: int, folder: Path) -> ParameterMap:
        """Return the transform file of a stage as a map, for files that lie in `folder`."""
        name = f"TransformParameters.{number}.txt"
        return parse_parameter_text(self.lying_in(folder)[name].decode(), name)


def run_chain(
    maps: Sequence[ParameterMap],
    inputs: ChainInputs,
    tell: Callable[[int, float, str], None],
    log: Log,
    *,
    seed: int | None = None,
    threads: int | None = None,
    priority: str | None = None,
) -> tuple[list[ChainStage], ElastixFiles]:
    """Let elastix compute a whole chain.

    Parameters
    ----------
    maps : sequence of ParameterMap
        One for each stage. They are handed on as they are, but for the format of the result images, which is lossless
        on the way here, and for the seed.
    inputs : ChainInputs
    tell : callable
        Is given the number of a stage, the share of it that is done, and what is being done.
    log : Logger
        Where elastix's lines go.
    seed, threads, priority
        As :class:`regnet_itk.RunOptions` has them.

    Raises
    ------
    ParameterError, RegistrationError
        If elastix fails; one line with its reason.
    """
    source = maps[0].source if len(maps) == 1 else ", ".join(values.source for values in maps)
    with job_folder() as job:
        with writing_to(job):
            settings = _write_job(job, maps, inputs, seed)
        heard = RegistrationLog(maps, tell, log)
        follower = Follower(job / "output" / _LOG, heard.take, heard.report)
        run_job(job, {**settings, "threads": threads, "priority": priority}, follower, source)
        seconds = heard.seconds()
        stages = [
            ChainStage(seconds[n], _warped(job, n, values), heard.facts[n], _tables(job, n))
            for n, values in enumerate(maps)
        ]
        return stages, _files(job, maps)


def _write_job(job: Path, maps: Sequence[ParameterMap], inputs: ChainInputs, seed: int | None) -> dict[str, object]:
    files = []
    for number, values in enumerate(maps):
        changed = values.with_(ResultImageFormat="mha", CompressResultImage=False)
        file = job / f"parameters{number}.txt"
        file.write_text((changed if seed is None else changed.with_(RandomSeed=seed)).to_text(), encoding="utf-8")
        files.append(str(file))
    points: dict[str, str | None] = {}
    for name, text in (("fixed_points", inputs.fixed_points), ("moving_points", inputs.moving_points)):
        points[name] = None if text is None else str(job / f"{name}.txt")
        if text is not None:
            (job / f"{name}.txt").write_text(text, encoding="utf-8")
    return {
        "task": "registration",
        "dimension": inputs.fixed[0].array.ndim,
        "fixed": write_images(inputs.fixed, job / "fixed"),
        "moving": write_images(inputs.moving, job / "moving"),
        "fixed_masks": write_masks(inputs.fixed_masks, job / "fixed_mask"),
        "moving_masks": write_masks(inputs.moving_masks, job / "moving_mask"),
        "parameters": files,
        "initial": inputs.initial,
        **points,
    }


def _warped(job: Path, number: int, values: ParameterMap) -> ImageND | None:
    if not values.get_bool("WriteResultImage", True):
        return None
    file = job / "output" / f"result.{number}.mha"
    if not file.is_file():
        raise RegistrationError(f"{values.source}: elastix ended without writing the result image")
    found = read_own(str(file))
    return replace(found, array=cast_values(found.array, values.get_str("ResultImagePixelType", "short")))


def _tables(job: Path, number: int) -> dict[str, str]:
    found = sorted(job.glob(f"output/IterationInfo.{number}.*"))
    return {file.stem.split(".")[-1]: file.read_text(encoding="utf-8") for file in found}


def _files(job: Path, maps: Sequence[ParameterMap]) -> ElastixFiles:
    """Read what is left, with the keys of the result image as the user has them, for elastix of any version."""
    output = job / "output"
    contents = {}
    for file in sorted(output.iterdir()):
        if not re.fullmatch(r"elastix\.log|result\.\d+\.mha|IterationInfo\..*", file.name):
            contents[file.name] = file.read_bytes()
    for number, values in enumerate(maps):
        name = f"TransformParameters.{number}.txt"
        if name not in contents:
            raise RegistrationError(f"{values.source}: elastix ended without writing a transform")
        text = contents[name].decode()
        for key, value in _result_keys(values).items():
            text = re.sub(rf"^\({key} .*\)$", f'({key} "{value}")', text, flags=re.MULTILINE)
        text = _INITIAL.sub(r'\g<0>\n(InitialTransformParametersFileName "\1")', text)
        contents[name] = text.encode()
    return ElastixFiles(contents, str(output))


def _result_keys(values: ParameterMap) -> dict[str, str]:
    kept = {"ResultImageFormat": values.get_str("ResultImageFormat", "mhd")}
    kept["CompressResultImage"] = values.get_str("CompressResultImage", "false")
    pixel_type = values.get_str("ResultImagePixelType", "short")
    kept["ResultImagePixelType"] = pixel_type if pixel_type in PIXEL_TYPES else "short"
    return kept
