"""Parameter files: what elastix reads is read, and what elastix lets pass in silence is named."""

from __future__ import annotations

import pytest

from regnet_itk.errors import OutputError, ParameterError
from regnet_itk.parameters import (
    ParameterMap,
    parse_parameter_text,
    parse_parameter_toml,
    read_parameter_map,
    shipped_parameter_files,
    write_parameter_map,
)
from regnet_itk.stages.registry import check_parameter_map

TEXT = """// An affine registration
(Transform "AffineTransform")   // with a comment

  (ImagePyramidSchedule 4 4 4  2 2 2)
(Scales 1e5 -2.50 .5 7)
(WriteResultImage "true")
(DeformationFieldFileName "/a folder/(1)/x.mha")
"""
VALUES = {
    "Transform": ("AffineTransform",),
    "ImagePyramidSchedule": ("4", "4", "4", "2", "2", "2"),
    "Scales": ("1e5", "-2.50", ".5", "7"),
    "WriteResultImage": ("true",),
    "DeformationFieldFileName": ("/a folder/(1)/x.mha",),
}


def test_text_is_parsed_with_comments_quotes_and_several_values():
    assert parse_parameter_text(TEXT).values == VALUES
    assert parse_parameter_text(TEXT.replace("\n", "\r\n")).values == VALUES


@pytest.mark.parametrize("suffix", ["txt", "toml"])
def test_read_after_write_gives_the_same_values(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    write_parameter_map(ParameterMap(VALUES), path)
    assert read_parameter_map(path).values == VALUES
    assert read_parameter_map(path).source == str(path)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_toml_and_text_say_the_same_as_itk_elastix(tmp_path):
    itk = pytest.importorskip("itk")
    theirs = itk.ParameterObject.New()
    values = theirs.GetDefaultParameterMap("bspline")
    values["DeformationFieldFileName"] = ("/a folder/x.mha",)
    values["Scales"] = ("1", "2.5", "-1e-3")
    theirs.AddParameterMap(values)
    for suffix in ("txt", "toml"):
        written = tmp_path / f"theirs.{suffix}"
        theirs.WriteParameterFile(str(written))
        read = read_parameter_map(written)
        assert read.values == {key: tuple(value) for key, value in values.items()}
        assert check_parameter_map(read) == []
        ours = tmp_path / f"ours.{suffix}"
        write_parameter_map(read, ours)
        back = itk.ParameterObject.New()
        back.ReadParameterFile(str(ours))
        theirs_again = {key: tuple(map(_number, value)) for key, value in back.GetParameterMap(0).items()}
        assert theirs_again == {key: tuple(map(_number, value)) for key, value in read.values.items()}


@pytest.mark.parametrize("kind", ["translation", "rigid", "affine", "bspline", "spline", "groupwise"])
def test_no_default_map_of_elastix_is_refused_or_warned_about(kind):
    itk = pytest.importorskip("itk")
    values = itk.ParameterObject.New().GetDefaultParameterMap(kind)
    assert check_parameter_map(ParameterMap({key: tuple(value) for key, value in values.items()})) == []


BROKEN_TEXT = {
    "no opening": ('Transform "A")', "line 2: expected '(Key value ..)' in parentheses"),
    "no closing": ('(Transform "A"', "line 2: expected '(Key value ..)' in parentheses"),
    "unbalanced quote": ('(Transform "A)', "line 2: a quote is not closed"),
    "quote within a value": ('(Transform A"B")', "line 2: a quote stands within a value"),
    "empty string": ('(Transform "")', "line 2: the key 'Transform' has an empty value"),
    "missing value": ("(Transform )", "line 2: the key 'Transform' has an empty value"),
    "only a key": ("(Transform)", "line 2: the key 'Transform' has an empty value"),
    "nothing": ("()", "line 2: expected '(Key value ..)'"),
    "quoted key": ('("Transform" 1)', "line 2: expected '(Key value ..)' with a key that is not quoted"),
    "given twice": ("(Metric 2)", "line 2: the key 'Metric' is given twice"),
    "something behind": ("(Transform 1) 2", "line 2: expected '(Key value ..)' in parentheses"),
    "two on a line": ("(Transform 1) (Size 2)", "line 2: expected '(Key value ..)' in parentheses"),
}


@pytest.mark.parametrize("case", BROKEN_TEXT)
def test_what_elastix_cannot_parse_is_named_with_file_and_line(tmp_path, case):
    line, message = BROKEN_TEXT[case]
    path = tmp_path / "p.txt"
    path.write_text(f"(Metric 1)\n{line}\n")
    with pytest.raises(ParameterError) as error:
        read_parameter_map(path)
    assert str(error.value).startswith(f"{path}, {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A = ", "not valid TOML"),
        ("A = 1\nA = 2\n", "not valid TOML"),
        ("A = []", "'A' has an empty value"),
        ('A = ""', "'A' has an empty value"),
        ("[A]\nb = 1", "must be text, numbers or true/false"),
        ("A = 2020-01-01", "must be text, numbers or true/false"),
        ("A = [[1, 2], [3]]", "must be text, numbers or true/false"),
    ],
)
def test_broken_toml_is_named(text, message):
    with pytest.raises(ParameterError, match=r"p\.toml") as error:
        parse_parameter_toml(text, "p.toml")
    assert message in str(error.value)


def test_toml_as_elastix_writes_it():
    values = parse_parameter_toml(
        '# c\nA = "x" # y\nB = [1, 2.50, 1e-3]\nC = true\nD = ["a", "b"]\nE = [true, false]\n'
    ).values
    assert values == {"A": ("x",), "B": ("1", "2.50", "1e-3"), "C": ("true",), "D": ("a", "b"), "E": ("true", "false")}


def test_files_that_are_missing_empty_or_not_text(tmp_path, monkeypatch):
    for name, content, message in [("e.txt", b"// no\n", "is empty"), ("b.txt", b"\xff\x00", "not a text file")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParameterError, match=message):
            read_parameter_map(tmp_path / name)
    with pytest.raises(ParameterError, match="is a folder"):
        read_parameter_map(tmp_path)
    with pytest.raises(OutputError):
        write_parameter_map(ParameterMap(VALUES), tmp_path / "no" / "p.txt")
    monkeypatch.setattr("regnet_itk.parameters.shipped_parameter_files", lambda: {"affine": tmp_path / "affine.txt"})
    with pytest.raises(ParameterError, match=r"did you mean 'affine'.*give the path of a file.*\(affine\)"):
        read_parameter_map("afine")
    (tmp_path / "affine.txt").write_text(TEXT)
    assert read_parameter_map("affine").values == VALUES


def test_shipped_files_can_be_read_by_name_and_are_right():
    for name in shipped_parameter_files():
        assert check_parameter_map(read_parameter_map(name)) == []


def test_values_are_converted_and_wrong_ones_named():
    values = ParameterMap({"A": ("3", "4.5"), "B": ("true",), "C": ("maybe",)}, "p.txt")
    assert (values.get_int("A"), values.get_float("A"), values.get_floats("A")) == (3, 3.0, [3.0, 4.5])
    assert (values.get_bool("B"), values.get_str("C"), values.get_int("D", 5)) == (True, "maybe", 5)
    assert (values.get_bool("D", False), values.get_floats("D", 2, (1, 2)), values.get_str("D", "")) == (
        False,
        [1, 2],
        "",
    )
    for call, message in [
        (lambda: values.get_bool("C"), "p.txt: 'C' must be \"true\" or \"false\", not 'maybe'"),
        (lambda: values.get_float("C"), "p.txt: 'C' must be a number, not 'maybe'"),
        (lambda: values.get_ints("A"), "p.txt: 'A' must be a whole number, not '4.5'"),
        (lambda: values.get_floats("A", 3), "p.txt: 'A' has 2 values, and needs 3"),
        (lambda: values.get_str("D"), "p.txt: the key 'D' is missing"),
    ]:
        with pytest.raises(ParameterError) as error:
            call()
        assert str(error.value) == message


def test_a_changed_copy_leaves_the_original_alone():
    values = ParameterMap(VALUES, "p.txt")
    changed = values.with_({"Scales": [1, 2.5]}, WriteResultImage=False, Metric="X")
    assert (changed["Scales"], changed["WriteResultImage"], changed["Metric"]) == (("1", "2.5"), ("false",), ("X",))
    assert values.values == VALUES
    assert changed.source == "p.txt"
    assert "Scales" not in changed.without("Scales")


def _check(**values):
    return check_parameter_map(ParameterMap({"Transform": ("AffineTransform",)}, "p.txt").with_(values))


def test_a_regnet_map_may_hold_its_keys_and_those_of_elastix():
    assert (
        _check(
            Registration="RegNetRegistration",
            RegNetModel="regnet",
            RegNetOutputStep=2,
            RegNetPrecision="auto",
            RegNetMemoryBudget=6.5,
            RegNetFadeWidth=0,
            RegNetRegion="body",
            RegNetRepetitions=2,
            RegNetStages=[16, 8, 4],
            RegNetInstanceIterations=0,
            RegNetInstanceSmoothness=0.1,
            WriteResultImage="true",
            DefaultPixelValue=-1000,
        )
        == []
    )
    assert not ParameterMap({"Registration": ("RegNetRegistration",)}).is_elastix
    assert ParameterMap({}).is_elastix


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Registration": "RegnetRegistration"}, "'RegnetRegistration'; did you mean 'RegNetRegistration'?"),
        ({"Registration": "Zebra"}, "no Registration 'Zebra'; known are MultiResolutionRegistration"),
        ({"RegNetModel": "a"}, "needs (Registration \"RegNetRegistration\"), but the Registration is 'MultiRes"),
        ({"Registration": "RegNetRegistration", "RegNetModell": "a"}, "did you mean 'RegNetModel'?"),
        ({"Registration": "RegNetRegistration", "RegnetModel": "a"}, "did you mean 'RegNetModel'?"),
        ({"Registration": "RegNetRegistration", "RegNetBudget": "a"}, "did you mean 'RegNetMemoryBudget'?"),
        ({"Registration": "RegNetRegistration", "RegNetOutputStep": 0}, "'RegNetOutputStep' must be 1 or 2, not '0'"),
        ({"Registration": "RegNetRegistration", "RegNetOutputStep": 1.5}, "must be 1 or 2, not '1.5'"),
        ({"Registration": "RegNetRegistration", "RegNetRepetitions": "x"}, "at least 1, not 'x'"),
        ({"Registration": "RegNetRegistration", "RegNetInstanceIterations": -1}, "0 or more, not '-1'"),
        ({"Registration": "RegNetRegistration", "RegNetInstanceSmoothness": "nan"}, "0 or more, not 'nan'"),
        ({"Registration": "RegNetRegistration", "RegNetStages": [16, 0]}, "the coarsest first, not '0'"),
        ({"Registration": "RegNetRegistration", "RegNetPrecision": "half"}, "must be auto, float32 or bfloat16, not"),
        ({"Registration": "RegNetRegistration", "RegNetMemoryBudget": -1}, "GB above 0, not '-1'"),
        ({"Registration": "RegNetRegistration", "RegNetMemoryBudget": "nan"}, "GB above 0, not 'nan'"),
        ({"Registration": "RegNetRegistration", "RegNetFadeWidth": "inf"}, "0 or more, not 'inf'"),
        ({"Registration": "RegNetRegistration", "RegNetRegion": "lung"}, "lungs, body, foreground or all"),
        ({"Registration": "RegNetRegistration", "RegNetRegion": ["all", "body"]}, "takes one value, not 2"),
        ({"Registration": "RegNetRegistration", "FixedImageDimension": 2}, "is 2; this stage needs 3D images"),
        ({"FixedImageDimension": 5}, "'FixedImageDimension' is 5; elastix registers images of 2, 3 or 4"),
        ({"MovingImageDimension": 1}, "'MovingImageDimension' is 1"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_the_nearest_that_does(values, message):
    with pytest.raises(ParameterError) as error:
        _check(**values)
    assert message in str(error.value)
    assert str(error.value).startswith("p.txt: ")


@pytest.mark.parametrize("registration", ["MultiResolutionRegistration", "RegNetRegistration"])
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("NumberOfResolution", "NumberOfResolutions"),
        ("numberofresolutions", "NumberOfResolutions"),
        ("FixedImageBSplineInterpolatorOrder", "FixedImageBSplineInterpolationOrder"),
        ("ShowExactMetricValues", "ShowExactMetricValue"),
    ],
)
def test_a_key_that_elastix_does_not_know_is_a_warning_with_the_nearest(registration, key, nearest):
    ignored = f"p.txt: elastix does not know the key '{key}', and ignores it; did you mean '{nearest}'?"
    assert _check(Registration=registration, **{key: 3}) == [ignored]


def test_an_unknown_key_that_resembles_nothing_is_a_warning():
    assert _check(ZebraCrossing=1) == ["p.txt: elastix does not know the key 'ZebraCrossing', and ignores it"]


def test_keys_of_numbered_components_are_known():
    assert _check(Metric0Weight=1, Metric12Use="true", Metric1NumberOfHistogramBins=32, ErodeFixedMask1="true") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('(Key "a//b")', "'//' begins a comment, within quotes too"),
        ("(Key 1//2)", "'//' begins a comment"),
        ("( Key 1)", "the key must follow the parenthesis at once"),
        ("(Ke'y 1)", "''' cannot be in a key"),
        ("(Key a\0b)", "it holds the character number 0"),
        ("(Key 1)\u2028", "in parentheses"),
        ("(Key 1)\r(Other 2)", "character number 13"),
    ],
)
def test_lines_that_elastix_reads_as_something_else_are_refused(line, message, tmp_path):
    itk = pytest.importorskip("itk")
    with pytest.raises(ParameterError, match=message):
        parse_parameter_text(f"(First 1)\n{line}\n")
    (tmp_path / "p.txt").write_bytes(f"(First 1)\n{line}\n".encode())
    judge = itk.ParameterObject.New()
    try:
        judge.ReadParameterFile(str(tmp_path / "p.txt"))
    except RuntimeError:
        return
    assert dict(judge.GetParameterMap(0)).get("Key") != ("1",)


def test_a_tab_is_a_space_as_for_elastix():
    assert parse_parameter_text('(Key\t"a\tb"\t1)').values == {"Key": ("a b", "1")}
