"""A data set in the order of BIDS: pairs of sessions, and results under the names that BIDS has for derivatives.

The names of images follow BIDS 1.9 ("Common data types and metadata of derivatives"); those of transforms follow the
proposal BEP 014, as fMRIPrep writes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regnet_itk.data.image_files import write_image
from regnet_itk.data.suffixes import IMAGE_SUFFIXES, known_suffix, without_suffix
from regnet_itk.elastix_results import ElastixResult
from regnet_itk.errors import OutputError, ParameterError
from regnet_itk.events import LOGGER
from regnet_itk.outputs import write_whole
from regnet_itk.pairs import Pair
from regnet_itk.results import RegistrationResult
from regnet_itk.versions import package_versions

IMAGES = "anat/*.nii*"
"""Which files of a session are registered."""

_NAME, _DESCRIPTION, _VERSION = "regnet-itk", "dataset_description.json", "1.9.0"
_SOURCE = "raw"  # what the data set is called in those made of it
_NOT_OF_BIDS = "/pairs/\n/claims/\n/batch.*\n"


@dataclass(frozen=True)
class BidsName:
    """The name of an image: "sub-01_ses-02_acq-sharp_T1w".

    Parameters
    ----------
    entities : mapping
        "sub", "ses" .. with their labels, in their order.
    suffix : str
        "T1w" ..
    """

    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def parse(cls, path: Path) -> BidsName | None:
        """Take a file's name apart; None if it is not one of BIDS."""
        *parts, suffix = without_suffix(path).split("_")
        entities = dict(part.split("-", 1) for part in parts if re.fullmatch(r"[a-z]+-[0-9A-Za-z+]+", part))
        known = len(entities) == len(parts) and {"sub", "ses"} <= entities.keys()
        return cls(entities, suffix) if known and re.fullmatch(r"[0-9A-Za-z]+", suffix) else None

    def without_session(self) -> tuple[object, ...]:
        """Return what the images of different sessions have in common that show the same."""
        return (*((key, label) for key, label in self.entities.items() if key != "ses"), self.suffix)

    def derived(self, suffix: str, **more: str) -> str:
        """Return the name, without its end, of what was made of the image."""
        return "_".join([*(f"{key}-{label}" for key, label in {**self.entities, **more}.items()), suffix])


def read_bids(folder: str | Path, images: str = IMAGES, fixed_session: str | None = None) -> list[Pair]:
    """Find the pairs of a data set: of each subject, the sessions but one with that one.

    Images are paired whose names are the same but for the session.

    Parameters
    ----------
    folder : str or Path
        With ``sub-*/ses-*/``.
    images : str
        Which files of a session, as a pattern.
    fixed_session : str, optional
        The label of the one that the others are registered to; by default the first of each subject.

    Returns
    -------
    list of Pair
        Each has the name of its moving image, and its subject as its group.

    Raises
    ------
    ParameterError
        If there is no pair.
    """
    folder = Path(folder)
    label = None if fixed_session is None else fixed_session.removeprefix("ses-")
    pairs: list[Pair] = []
    alone = []
    for subject in sorted(folder.glob("sub-*/")):
        found = _pairs_of(subject, images, label)
        pairs += found
        if not found:
            alone.append(subject.name)
    if not pairs:
        raise ParameterError(
            f"'{folder}' holds no two sessions of a subject with images of the same name (sub-*/ses-*/{images}): name "
            "others with `images`, another session with `fixed_session`, or give a list of pairs (.csv)"
        )
    if alone:
        LOGGER.warning(f"no pair of sessions has {len(alone)} of the subjects: {', '.join(alone[:10])}")
    return pairs


def _pairs_of(subject: Path, images: str, label: str | None) -> list[Pair]:
    sessions = {folder.name.removeprefix("ses-"): folder for folder in sorted(subject.glob("ses-*/"))}
    first = next(iter(sessions), None) if label is None else label
    fixed = dict(_images(sessions.pop(first), images)) if first in sessions else {}
    return [
        Pair(without_suffix(path), fixed[what], path, group=subject.name, where=str(path))
        for session in sessions.values()
        for what, path in _images(session, images)
        if what in fixed
    ]


def _images(session: Path, pattern: str) -> Iterable[tuple[tuple[object, ...], Path]]:
    for path in sorted(session.glob(pattern)):
        name = BidsName.parse(path)
        if name is not None and known_suffix(path, IMAGE_SUFFIXES) and path.is_file():
            yield (path.parent.name, *name.without_session()), path


def describe_derivatives(source: str | Path, out: str | Path) -> None:
    """Write what makes a folder a data set of BIDS: ``dataset_description.json`` and ``.bidsignore``.

    Parameters
    ----------
    source : str or Path
        The data set whose images are registered.
    out : str or Path
        Created if needed.

    Raises
    ------
    OutputError, OSError
        If it cannot be written, or is another data set.
    """
    out = Path(out)
    there = out / _DESCRIPTION
    ours = not there.is_file() or _NAME in there.read_text(encoding="utf-8", errors="replace")
    if out.resolve() == Path(source).resolve() or not ours:
        own = Path(source) / "derivatives" / _NAME
        raise OutputError(f"the output folder '{out}' is another data set: give a folder of its own, such as '{own}'")
    out.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "Registered sessions",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": _NAME, "Version": package_versions()[_NAME]}],
        "DatasetLinks": {_SOURCE: Path(source).resolve().as_uri()},
    }
    _write_json(there, description)
    write_whole(out / ".bidsignore", lambda part: part.write_text(_NOT_OF_BIDS, encoding="utf-8"))


@dataclass(frozen=True)
class BidsExport:
    """Writes the warped image of a pair, and its transform for ITK, under the names of BIDS.

    Parameters
    ----------
    source, out : Path
        The data set, and the folder of what is made of it.
    """

    source: Path
    out: Path

    def __call__(self, pair: Pair, result: RegistrationResult | ElastixResult, folder: Path) -> None:
        """Write what was found for a pair, whose registration lies in `folder`.

        Raises
        ------
        OutputError, OSError
            If something cannot be written.
        """
        fixed, moving = BidsName.parse(pair.fixed), BidsName.parse(pair.moving)
        assert fixed is not None
        assert moving is not None
        where = self.out / pair.moving.parent.relative_to(self.source)
        where.mkdir(parents=True, exist_ok=True)
        to = f"ses{fixed.entities['ses']}"
        image = where / moving.derived(moving.suffix, space=to, desc="registered")
        write_image(result.warped, image.with_name(image.name + ".nii.gz"))
        sources = [f"bids:{_SOURCE}:{path.relative_to(self.source).as_posix()}" for path in (pair.moving, pair.fixed)]
        _write_json(image.with_name(image.name + ".json"), {"Sources": sources, "SpatialReference": sources[1]})
        composite = folder / f"TransformParameters.{len(result.stages) - 1}-Composite.h5"
        if composite.is_file():
            ends = {"from": f"ses{moving.entities['ses']}{moving.suffix}", "to": f"{to}{fixed.suffix}"}
            name = moving.derived("xfm", **ends, mode="image")
            write_whole(where / f"{name}.h5", lambda part: _link(composite, part))
            _write_json(where / f"{name}.json", {"Sources": sources})


def _write_json(path: Path, content: object) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
