"""Mending paths in transform files, judged by transformix and by reading the chain."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import command
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.parameters import parse_parameter_text
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.repair import repair_folder

GRID = Grid((12, 11, 10), (3.0, 4.0, 5.0), (-20.0, 30.0, 10.0))
AFFINE = MatrixTransform([[1.1, 0.1, 0], [-0.05, 0.95, 0.1], [0, 0.02, 1.05]], GRID.centre(), [3, -4, 5])
FIELD = DisplacementField(
    gaussian_filter(np.random.default_rng(0).normal(size=(*GRID.shape, 3)), (2, 2, 2, 0)).astype(np.float32) * 20, GRID
)
CHAIN = TransformChain((Link(AFFINE), link_field(FIELD)))
POINTS = GRID.index_to_point(np.random.default_rng(1).uniform(1, 8, (20, 3)))


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A folder of a registration that was made elsewhere."""
    (tmp_path / "made").mkdir()
    write_elastix(CHAIN, tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "moved"


def call(*arguments):
    return command.call("repair", *arguments)


def snapshot(folder):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def keys_of(file):
    return parse_parameter_text(file.read_text(encoding="utf-8"))


def test_a_moved_folder_is_mended(moved, tmp_path, capsys):
    before = snapshot(moved)
    assert call(moved, "--dry-run") == 0
    assert "3 paths in 1 files would be changed; nothing was written" in capsys.readouterr().out
    assert snapshot(moved) == before
    assert call("moved") == 0
    printed = capsys.readouterr().out
    assert f"  {tmp_path}/made/TransformParameters.0.txt\n  -> {moved}/TransformParameters.0.txt\n" in printed
    assert "3 paths in 1 files changed" in printed
    keys = keys_of(moved / "TransformParameters.1.txt")
    for key in ("InitialTransformParameterFileName", "InitialTransformParametersFileName"):
        assert keys[key] == (str(moved / "TransformParameters.0.txt"),)
    assert keys["DeformationFieldFileName"] == (str(moved / "deformationField.1.mha"),)
    np.testing.assert_allclose(
        read_chain(moved / "TransformParameters.1.txt").map_points(POINTS), CHAIN.map_points(POINTS), atol=1e-4
    )
    changed = [file for file, content in snapshot(moved).items() if before[file] != content]
    assert [file.name for file in changed] == ["TransformParameters.1.txt"]
    lines = (moved / "TransformParameters.1.txt").read_text(encoding="utf-8").splitlines()
    old = before[moved / "TransformParameters.1.txt"][0].decode().splitlines()
    assert sum(a != b for a, b in zip(lines, old, strict=True)) == 3


@pytest.mark.skipif(shutil.which("transformix") is None, reason="the program transformix is not installed")
def test_transformix_can_use_a_mended_folder(moved, tmp_path):
    (tmp_path / "points.txt").write_text("point\n1\n" + " ".join(map(repr, POINTS[0].tolist())) + "\n")
    (tmp_path / "out").mkdir()
    command = ["transformix", "-tp", moved / "TransformParameters.1.txt", "-def", "points.txt", "-out", "out"]
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
    repair_folder(moved)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    found = re.search(
        r"OutputPoint = \[ (.*?) \]", (tmp_path / "out" / "outputpoints.txt").read_text(encoding="utf-8")
    )[1]
    np.testing.assert_allclose(np.array(found.split(), float), CHAIN.map_points(POINTS[0]), atol=1e-3)


def test_what_is_right_is_not_touched(moved, tmp_path, capsys):
    repair_folder(moved)
    before = snapshot(moved)
    assert call(moved) == 0
    assert "all paths are right; nothing was changed" in capsys.readouterr().out
    assert snapshot(moved) == before
    shutil.copytree(moved, tmp_path / "copy")  # its files name those of the first folder, which are there
    assert repair_folder(tmp_path / "copy") == []


def test_names_of_other_systems_and_relative_ones(moved):
    file = moved / "TransformParameters.1.txt"
    text = file.read_text(encoding="utf-8").replace("\n", "\r\n")
    text = re.sub(r'\(DeformationFieldFileName ".*"\)', r"(DeformationFieldFileName "
                  r'"C:\\Users\\x y\\run\\deformationField.1.mha")', text)  # fmt: skip
    text = re.sub(r'\(InitialTransformParameterFileName ".*"\)', r"(InitialTransformParameterFileName "
                  r'"C:\\Users\\x y\\run\\transformparameters.0.TXT") // mine', text)  # fmt: skip
    text = re.sub(r'\(InitialTransformParametersFileName ".*"\)',
                  '(InitialTransformParametersFileName "TransformParameters.0.txt")', text)  # fmt: skip
    file.write_bytes(text.encode())
    repair_folder(moved)
    content = file.read_bytes().decode()
    assert content.count("\r\n") == content.count("\n") == text.count("\n")
    assert f'(InitialTransformParameterFileName "{moved}/TransformParameters.0.txt") // mine\r\n' in content
    assert f'(InitialTransformParametersFileName "{moved}/TransformParameters.0.txt")\r\n' in content


def test_toml(moved):
    (moved / "a b.toml").write_text('Transform = "File"\nTransformFileName = "C:\\\\x\\\\deformationField.1.mha"\n')
    repair_folder(moved)
    assert (moved / "a b.toml").read_text(
        encoding="utf-8"
    ) == f'Transform = "File"\nTransformFileName = "{moved}/deformationField.1.mha"\n'


def test_folders_in_the_folder_and_files_of_equal_names(tmp_path, capsys):
    for patient in ("anna", "bert"):
        (tmp_path / "study" / patient).mkdir(parents=True)
        write_elastix(CHAIN, tmp_path / "study" / patient)
    (tmp_path / "study").rename(tmp_path / "new")
    found = repair_folder(tmp_path / "new")
    assert len(found) == 6
    for repair in found:
        assert Path(repair.new).parent == repair.file.parent


def test_the_file_of_another_patient_is_not_taken(tmp_path, capsys):
    for patient in ("anna", "bert"):
        (tmp_path / "study" / patient).mkdir(parents=True)
        write_elastix(CHAIN, tmp_path / "study" / patient)
    (tmp_path / "study").rename(tmp_path / "new")
    (tmp_path / "new" / "anna" / "deformationField.1.mha").unlink()
    fails(capsys, r"anna/TransformParameters.1.txt: DeformationFieldFileName: '.*' does not exist, and was not found "
          r"in the folder \(one of that name is .*/bert/deformationField.1.mha\)", tmp_path / "new")  # fmt: skip


def test_stages_in_folders_of_their_own(tmp_path, capsys):
    for stage in ("affine", "field"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    first = write_elastix(TransformChain(CHAIN.links[:1]), tmp_path / "run" / "affine")[0]
    last = write_elastix(CHAIN, tmp_path / "run" / "field")[-1]
    last.write_text(
        last.read_text(encoding="utf-8").replace("/field/TransformParameters.0", "/affine/TransformParameters.0")
    )
    (tmp_path / "run").rename(tmp_path / "new")
    fails(capsys, "names files of two folders", tmp_path / "new" / "field")
    repair_folder(tmp_path / "new")
    mended = tmp_path / "new" / "field" / last.name
    assert keys_of(mended)["InitialTransformParameterFileName"] == (str(tmp_path / "new" / "affine" / first.name),)


def fails(capsys, message, *arguments):
    assert call(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"regnet-itk: error: .*{message}.*\n", printed.err), printed.err


def test_what_cannot_be_found_is_named_and_nothing_is_changed(moved, capsys):
    (moved / "deformationField.1.mha").unlink()
    before = snapshot(moved)
    fails(capsys, r"nothing was changed: TransformParameters.1.txt: DeformationFieldFileName: "
          r"'.*made/deformationField.1.mha' does not exist, and was not found in the folder; put", moved)  # fmt: skip
    assert snapshot(moved) == before
    for name in ("made", "MADE"):
        (moved / name).mkdir()
        FIELD.write(moved / name / "deformationField.1.mha")
    fails(capsys, "could be any of .*moved/MADE/deform.*moved/made/deform.*put the right one beside it", moved)


def test_bad_folders(tmp_path, capsys):
    fails(capsys, "'.*none' does not exist", tmp_path / "none")
    fails(capsys, "holds no elastix transform file", tmp_path)
    (tmp_path / "parameters.txt").write_text(
        '(Registration "MultiResolutionRegistration")\n(Transform "AffineTransform")\n'
    )
    (tmp_path / "notes.txt").write_bytes(b"\xff\xfe notes")
    fails(capsys, "holds no elastix transform file", tmp_path)
    fails(capsys, "is a file; give the folder", tmp_path / "notes.txt")


def test_a_file_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    """Neither is changed, not even the one that could be."""
    for name in ("a", "b"):
        (tmp_path / "made" / name).mkdir(parents=True)
        write_elastix(CHAIN, tmp_path / "made" / name)
    (tmp_path / "made").rename(tmp_path / "moved")
    before = snapshot(tmp_path / "moved")
    write = Path.write_bytes

    def full(path, content):
        if path.parent.parent.name == "b":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    fails(capsys, "cannot write '.*moved/b.*': No space left", tmp_path / "moved")
    assert snapshot(tmp_path / "moved") == before


def test_a_transform_that_names_no_file(tmp_path, capsys):
    write_elastix(TransformChain(CHAIN.links[:1]), tmp_path)
    assert call(tmp_path) == 0
    assert "all paths are right" in capsys.readouterr().out
