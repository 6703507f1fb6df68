"""The files of a registration that elastix has too: the transforms, the result images, the tables of the iterations."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_itk.data.image_files import write_image
from regnet_itk.data.suffixes import RESULT_FORMATS
from regnet_itk.errors import OutputError
from regnet_itk.events import LOGGER
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_writing import rename_elastix_files, write_elastix
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

if TYPE_CHECKING:
    from regnet_itk.data.grid import Grid
    from regnet_itk.data.image import Image
    from regnet_itk.data.image_nd import ImageND
    from regnet_itk.stage_report import StageReport

FORMATS = "|".join(map(re.escape, (*RESULT_FORMATS, "raw", "zraw", "raw.gz")))
"""The suffixes of result images, for regular expressions."""

RECORD = "registration.json"

RUN_FILES = OutputFiles(
    r"(TransformParameters|InitialTransform)\.\d+(\.R\d+|\.It\d+)*(-part\d+|-Composite)?(\.txt)?\.(txt|toml|h5|tfm|dat)"
    r"|errorMap\.\d+\.mha"
    r"|(d|initialD)eformationField\.\d+(-part\d+)?\.\w+"
    rf"|result\.\d+(\.R\d+|\.It\d+)*\.({FORMATS})|(Fixed|Moving)ImagePyramid\d+(\.\d+)?\.R\d+\.mha"
    r"|IterationInfo\.\d+\.R\d+\.txt"
    r"|registration\.(json|png)|regnet-itk\.log",
    RECORD,
    with_it=(
        "report.html",
        *(f"follow_up.{suffix}" for suffix in ("csv", "json", "html")),
        *(f"ventilation.{suffix}" for suffix in ("csv", "json", "png")),
        *("ventilation_jacobian.mha", "ventilation_hu.mha", "density_change.mha"),
    ),
)
"""What a registration writes."""


def write_stage_files(number: int, report: StageReport, folder: Path) -> None:
    """Write ``result.N.<format>`` and ``IterationInfo.N.R.txt`` of a stage that has them.

    Parameters
    ----------
    number : int
        N, from 0.
    report : StageReport
        Of the stage.
    folder : Path
        Must exist.

    Raises
    ------
    OutputError
        If an image cannot be written.
    """
    if report.warped is not None:
        usual = "mhd" if report.parameters.is_elastix else "mha"  # the first is elastix's own
        suffix = report.parameters.get_str("ResultImageFormat", usual)
        compress = report.parameters.get_bool("CompressResultImage", True)
        _write_result(report.warped, folder / f"result.{number}.{suffix}", compress)
    for resolution, text in report.iteration_info.items():
        (folder / f"IterationInfo.{number}.{resolution}.txt").write_text(text, encoding="utf-8")


def _write_result(image: Image | ImageND, path: Path, compress: bool) -> None:
    """Write a result image; as .mha if the format that is asked for cannot hold it, so that the work is not lost."""
    try:
        write_image(image, path, compress)
    except OutputError as error:
        other = path.with_name(".".join(path.name.split(".")[:2]) + ".mha")
        if other == path:
            raise
        write_image(image, other, compress)  # which fails if the disk is full
        reason = str(error).rpartition("ITK ERROR: ")[2]
        LOGGER.warning("%s cannot hold this image (%s); it is written as %s", path.name, reason, other.name)


def write_chain_files(
    chain: TransformChain, initial_links: int, grid: Grid, folder: Path, final_folder: Path | None = None
) -> list[Path]:
    """Write the elastix files of a chain, so that the folder has all that they need.

    Stage N is ``TransformParameters.N.txt``; what was given before the stages is ``InitialTransform.N.txt``.

    Parameters
    ----------
    chain : TransformChain
    initial_links : int
        How many of its links were given before the stages.
    grid : Grid
        The fixed image's, for links that do not say how to resample.
    folder : Path
        Where to write; it must exist.
    final_folder : Path, optional
        Where the files will lie in the end, if `folder` is a temporary one.

    Returns
    -------
    list of Path
        One file for each link of the chain; the last one stands for the whole.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    final = (final_folder or folder).resolve()
    resampling = make_resampling_parameters(grid)  # a transform of ITK does not say how to resample
    links = [
        link if "Size" in link.parameters else replace(link, parameters=link.parameters.with_(resampling))
        for link in chain.links
    ]
    with staged_folder(folder) as stage:
        written = write_elastix(TransformChain(tuple(links)), stage, final)
        if initial_links:
            new_names = {file.name: _file_name(file.name, initial_links) for file in stage.iterdir()}
            rename_elastix_files(stage, new_names, final)
            written = [stage / new_names[file.name] for file in written]
    return [folder / file.name for file in written]


def _file_name(numbered: str, initial_links: int) -> str:
    """Return the name of a file of the chain, whose links are numbered from 0, initial ones included."""
    kind, tag, suffix = numbered.split(".")
    number, dash, part = tag.partition("-")
    if int(number) >= initial_links:
        return f"{kind}.{int(number) - initial_links}{dash}{part}.{suffix}"
    return f"{'InitialTransform' if suffix == 'txt' else 'initialDeformationField'}.{tag}.{suffix}"
