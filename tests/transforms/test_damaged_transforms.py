"""Transform files that were cut off, damaged or made to harm: one line, soon, and no number that nobody wrote."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from transform_cases import CHAINS, affine, bspline, smooth_field

from regnet_itk.data.field import DisplacementField
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import chain_from_sitk, write_itk

HEAD = "#Insight Transform File V1.0\n#Transform 0\n"
AFFINE = HEAD + "Transform: AffineTransform_double_3_3\n"


@pytest.fixture
def files(tmp_path):
    """ITK's files of every kind, whole."""
    for suffix in ("tfm", "h5"):
        for name, transform in (("matrix", affine()), ("spline", bspline()), ("field", smooth_field())):
            write_itk(TransformChain((Link(transform),)), tmp_path / f"{name}.{suffix}")
    return tmp_path


@pytest.mark.parametrize("name", ["matrix", "spline", "field"])
def test_a_text_file_cut_anywhere_is_refused(name, files):
    whole = (files / f"{name}.tfm").read_text()
    read_chain(files / f"{name}.tfm")
    for share in (0.05, 0.3, 0.6, 0.9, 0.999):
        (files / "cut.tfm").write_text(whole[: int(len(whole) * share)])
        with pytest.raises(TransformError, match=r"cut.tfm' cannot be read: "):
            read_chain(files / "cut.tfm")


def test_a_packed_file_cut_anywhere_is_refused(files):
    whole = (files / "spline.h5").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (files / "cut.h5").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(TransformError, match=r"cut.h5' cannot be read: "):
            read_chain(files / "cut.h5")


def test_bytes_that_change_in_a_packed_file_end_in_a_line_or_in_a_transform(files):
    whole = (files / "matrix.h5").read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(8):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 6):
            damaged[at] = rng.integers(256)
        (files / "damaged.h5").write_bytes(damaged)
        try:
            assert np.isfinite(read_chain(files / "damaged.h5").map_points([[1.0, 2.0, 3.0]])).all()
        except TransformError as refused:
            assert "\n" not in str(refused)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "Transform: BSplineTransform_double_3_3\nParameters: 0 0 0\n"
         "FixedParameters: 1000 1000 1000 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n", r"1000 x 1000 x 1000 points"),
        (HEAD + "Transform: BSplineTransform_double_3_3\nParameters: 0 0 0\n"
         "FixedParameters: -6 6 6 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n", "-6 x 6 x 6 points"),
        (AFFINE + "Parameters: 1 0 0 0 1 0 0 0 1 nan 0 0\nFixedParameters: 0 0 0\n",
         "hold a number that is not finite"),
        (AFFINE + "Parameters: 1 0 0 0 1 0 0 0 1 0x 0 0\nFixedParameters: 0 0 0\n",
         "hold what is no number"),
        (AFFINE + "Parameters: 1 0 1\nFixedParameters: 0 0\n", "cannot be read"),
        ("not a transform\n", "does not begin with"),
    ],
)  # fmt: skip
def test_files_that_ask_for_what_they_do_not_hold(text, message, tmp_path):
    (tmp_path / "a.tfm").write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TransformError, match=message):
        read_chain(tmp_path / "a.tfm")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_reader_that_never_ends_is_stopped(tmp_path, monkeypatch):
    write_itk(CHAINS["affine"], tmp_path / "a.tfm")
    slow = tmp_path / "SimpleITK.py"
    slow.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("regnet_itk.transforms.itk_guard._SECONDS", 2)
    started = time.monotonic()
    with pytest.raises(TransformError, match="reading it did not end within 2 s"):
        read_chain(tmp_path / "a.tfm")
    assert time.monotonic() - started < 300


def test_a_reader_that_crashes_is_told_in_one_line(tmp_path, monkeypatch):
    write_itk(CHAINS["affine"], tmp_path / "a.tfm")
    (tmp_path / "SimpleITK.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TransformError, match="it is damaged: reading it takes ITK down"):
        read_chain(tmp_path / "a.tfm")


def test_numbers_that_are_not_finite_in_memory_and_in_packed_files(tmp_path):
    vectors = np.zeros((5, 6, 7, 3))
    vectors[2, 3, 4, 1] = np.nan
    grid = smooth_field().grid.crop((0, 0, 0), (7, 6, 5))
    field = sitk.DisplacementFieldTransform(
        sitk.Cast(DisplacementField(vectors, grid).to_sitk(), sitk.sitkVectorFloat64)
    )
    sitk.WriteTransform(field, str(tmp_path / "nan.h5"))
    for read in (lambda: chain_from_sitk(field), lambda: read_chain(tmp_path / "nan.h5")):
        with pytest.raises(TransformError, match="DisplacementFieldTransform holds a number that is not finite"):
            read()


def test_classes_of_itk_that_simpleitk_has_no_name_for_are_matrices(tmp_path):
    scaled = sitk.ComposeScaleSkewVersor3DTransform()
    scaled.SetTranslation((1, 2, 3))
    scaled.SetScale((1.1, 0.9, 1.2))
    sitk.WriteTransform(scaled, str(tmp_path / "t.tfm"))
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    expected = [scaled.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(read_chain(tmp_path / "t.tfm").map_points(points), expected, atol=1e-9)


def test_an_elastix_file_that_has_lost_where_it_starts_is_refused(tmp_path, capsys):
    whole = write_elastix(CHAINS["affine, field"], tmp_path)[-1]
    lines = whole.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "InitialTransform" not in line]
    whole.write_text("".join(kept))
    with pytest.raises(TransformError, match="the key 'InitialTransformParameterFileName' is missing"):
        read_chain(whole)
    assert call("info", whole) == 1
    assert "is missing" in capsys.readouterr().err


def test_a_hand_written_file_may_leave_its_start_out(tmp_path):
    path = write_elastix(CHAINS["affine"], tmp_path)[-1]
    values = {k: v for k, v in read_parameter_map(path).values.items() if not k.startswith(("Initial", "HowTo"))}
    path.write_text(ParameterMap(values).to_text())
    np.testing.assert_allclose(read_chain(path).map_points([[1, 2, 3]]), affine().map_points([[1, 2, 3]]))


def test_comments_of_older_editors_and_nothing_else_may_be_latin_1(tmp_path):
    text = '// pour le poumon, 6 \u00b5m, \u00e9t\u00e9\n(Transform "AffineTransform") // d\u00e9but\n(Metric "{}")\n'
    (tmp_path / "p.txt").write_bytes(text.format("AdvancedMeanSquares").encode("latin-1"))
    assert read_parameter_map(tmp_path / "p.txt")["Transform"] == ("AffineTransform",)
    (tmp_path / "p.txt").write_bytes(text.format("caf\u00e9").encode("latin-1"))
    with pytest.raises(Exception, match="is not a text file"):
        read_parameter_map(tmp_path / "p.txt")
    path = write_elastix(CHAINS["affine"], tmp_path)[-1]
    path.write_bytes("// \u00e9t\u00e9\n".encode("latin-1") + path.read_bytes())
    read_chain(path)
