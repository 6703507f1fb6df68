"""Mend the paths by which elastix transform files name each other, after their folder was moved or received.

elastix resolves such paths against the working directory alone, so they have to be absolute, and break on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regnet_itk.errors import TransformError
from regnet_itk.outputs import staged_folder
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, NO_INITIAL
from regnet_itk.transforms.elastix_reading import file_keys

_LARGEST = 1 << 30  # bytes; no transform file, but perhaps a table, is larger


@dataclass(frozen=True)
class Repair:
    """One path that was, or is to be, changed.

    Parameters
    ----------
    file : Path
        The transform file.
    key : str
        Its key.
    old, new : str
        The path it had, and the absolute path that it gets.
    """

    file: Path
    key: str
    old: str
    new: str


def repair_folder(folder: str | Path, dry_run: bool = False) -> list[Repair]:
    """Make every elastix transform file in a folder, and below it, name the files it needs by paths that exist.

    A path is left as it is if it is absolute and the file is there. Otherwise the file is looked for in the folder: by
    as many of the last parts of its path as agree. All files are changed, or none.

    Parameters
    ----------
    folder : str or Path
    dry_run : bool
        Change nothing; only say what would be changed.

    Returns
    -------
    list of Repair
        Empty if all paths were right.

    Raises
    ------
    TransformError
        If there is no folder, no transform file in it, or a file that is named cannot be found, or not without doubt.
    OutputError
        If a file cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file; give the folder that it lies in" if folder.exists() else "does not exist"
        raise TransformError(f"folder '{folder}' {what}")
    root = folder.resolve()
    texts = {file: text for file in sorted(root.rglob("*")) if (text := _transform_text(file)) is not None}
    if not texts:
        raise TransformError(f"folder '{folder}' holds no elastix transform file (.txt or .toml)")
    repairs = _plan(root, texts)
    if not dry_run:
        with ExitStack() as stack:  # all are written beside before the first is put in its place
            stages = {
                parent: stack.enter_context(staged_folder(parent))
                for parent in dict.fromkeys(repair.file.parent for repair in repairs)
            }
            for file in dict.fromkeys(repair.file for repair in repairs):
                changed = _changed(file, texts[file], {r.old: r.new for r in repairs if r.file == file})
                (stages[file.parent] / file.name).write_bytes(changed.encode())
    return repairs


def _plan(root: Path, texts: Mapping[Path, str]) -> list[Repair]:
    there = _files_by_name(root)
    repairs: list[Repair] = []
    lost: list[str] = []
    for file, text in texts.items():
        for key, old in _references(file, text):
            try:
                new = _found(old, file, there, root)
            except TransformError as error:
                lost.append(f"{file.relative_to(root)}: {key}: {error}")
                continue
            if new != old:
                repairs.append(Repair(file, key, old, new))
    if lost:
        raise TransformError(f"nothing was changed: {'; '.join(dict.fromkeys(lost))}")
    _check_one_origin(repairs)
    return repairs


def _transform_text(file: Path) -> str | None:
    """Return the text of an elastix transform file, with its own line ends, or None if it is something else."""
    if file.suffix.lower() not in (".txt", ".toml") or not file.is_file() or file.stat().st_size > _LARGEST:
        return None
    try:
        text = file.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    return text if _of_a_transform().search(text) else None


def _of_a_transform() -> re.Pattern[str]:
    return re.compile(rf"(?m)^\s*\(?({_reference_keys()}|TransformParameters|NumberOfParameters)[\s=]")


def _references(file: Path, text: str) -> Iterator[tuple[str, str]]:
    """Give the keys of a transform file that name another file, with its path."""
    for match in _pattern(file).finditer(text):
        name = _name(match)
        if name != NO_INITIAL:
            yield match[2], name


def _reference_keys() -> str:
    return "|".join((*INITIAL_KEYS, *file_keys()))


def _pattern(file: Path) -> re.Pattern[str]:
    return _pattern_of(file.suffix.lower())


def _pattern_of(suffix: str) -> re.Pattern[str]:
    if suffix == ".toml":
        return re.compile(rf'(?m)^(?P<head>({_reference_keys()})\s*=\s*)(?P<quoted>"(?:[^"\\\n]|\\.)*")')
    return re.compile(rf'(?m)^(?P<head>\s*\(({_reference_keys()})\s+)"(?P<name>[^"\n]*)"')


def _name(match: re.Match[str]) -> str:
    found = match.groupdict()
    return str(json.loads(found["quoted"])) if "quoted" in found else found["name"]


def _changed(file: Path, text: str, new_names: dict[str, str]) -> str:
    def put(match: re.Match[str]) -> str:
        name = _name(match)
        new = new_names.get(name, name)
        return match["head"] + (json.dumps(new, ensure_ascii=False) if file.suffix.lower() == ".toml" else f'"{new}"')

    return _pattern(file).sub(put, text)


def _files_by_name(root: Path) -> dict[str, list[Path]]:
    """Return all files below a folder by their names in small letters."""
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.is_file():
            found.setdefault(file.name.lower(), []).append(file)
    return found


def _found(name: str, file: Path, there: dict[str, list[Path]], root: Path) -> str:
    """Return the absolute path of the file that `name` means in the transform file `file`.

    A file of that name counts if it lies beside `file`, or if its whole path in the folder `root` agrees; one of
    another folder, another patient's for example, does not.
    """
    if Path(name).is_absolute() and Path(name).is_file():
        return name
    beside = file.parent / name
    if beside.is_file():
        return str(beside.resolve())
    parts = _parts(name)
    agreeing = {path: _agreement(path, parts) for path in there.get(parts[-1].lower(), []) if path != file}
    usable = [
        path for path, count in agreeing.items()
        if path.parent == file.parent or count >= len(path.relative_to(root).parts)
    ]  # fmt: skip
    if not usable:
        elsewhere = f" (one of that name is {next(iter(agreeing))})" if agreeing else ""
        raise TransformError(f"'{name}' does not exist, and was not found in the folder{elsewhere}; put it beside")
    best = [path for path in usable if agreeing[path] == max(agreeing[p] for p in usable)]
    best = [path for path in best if path.parent == file.parent] or best
    if len(best) > 1:
        raise TransformError(
            f"'{name}' does not exist, and could be any of {', '.join(map(str, best))}; put the right one beside it"
        )
    return str(best[0])


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts or ("",)


def _check_one_origin(repairs: list[Repair]) -> None:
    """Refuse files of two folders that would be taken for files of one."""
    origins: dict[tuple[Path, Path], tuple[str, ...]] = {}
    for repair in repairs:
        parent, origin = Path(repair.new).parent, _parts(repair.old)[:-1]
        if len(origin) and origins.setdefault((repair.file, parent), origin) != origin:
            raise TransformError(
                f"nothing was changed: '{repair.file}' names files of two folders, one of them '{repair.old}', but "
                f"those of that name lie in '{parent}' alone; give a folder that holds both"
            )


def _agreement(path: Path, parts: tuple[str, ...]) -> int:
    """Return how many of the last parts of two paths are the same."""
    count = 0
    for ours, theirs in zip(reversed(path.parts), reversed(parts), strict=False):
        if ours.lower() != theirs.lower():
            break
        count += 1
    return count
