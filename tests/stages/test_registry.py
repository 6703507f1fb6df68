"""Stages are found by their registration, given in any way, and may come from other packages."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from regnet_itk.comparison.methods import plan_method
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.registration import register
from regnet_itk.stages import registry
from regnet_itk.stages.base import RunOptions, Stage, StageResult
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.elastix_settings import ElastixSettings
from regnet_itk.stages.keys import choice, declared_keys, key, key_table, number, read_settings
from regnet_itk.stages.planning import check_stages, read_stages
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.stages.regnet_settings import RegNetSettings
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class ShiftSettings:
    """Declares keys of several kinds."""

    along_x: float = key("ShiftAlongX", 0.0, number("mm, at most 50 either way", least=-50.0), "`x`, mm")
    unit: str = key("ShiftUnit", "mm", choice("mm", "cm"), "of the shift")
    more: tuple[float, ...] = key(
        "ShiftMore", (), number("numbers above 0", above=0.0), "all are added", default_words="none", several=True
    )


class ShiftStage(Stage):
    """Moves by a vector."""

    settings_type = ShiftSettings

    def run(self, pair, initial, options):
        asked = read_settings(ShiftSettings, self.parameters)
        move = np.array([asked.along_x + sum(asked.more), 0.0, 0.0]) * (10 if asked.unit == "cm" else 1)
        options.progress(1.0, "moved")
        return StageResult(initial.then(Link(MatrixTransform(np.eye(3), translation=move))), 0.5, None)


def shift(**values):
    return ParameterMap({"Registration": ("ShiftRegistration",)}, "shift.txt").with_(values)


@pytest.fixture
def installed(install_packages):
    """As if a package had the stage, and others had an entry point that leads nowhere."""
    return install_packages(
        registry.ENTRY_POINTS,
        ShiftRegistration=f"{__name__}:ShiftStage",
        GoneRegistration="no_such_package:Stage",
        OtherRegistration="pathlib:Path",
    )


def images():
    values = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    return Image(values, Grid((8, 7, 6))), Image(values, Grid((8, 7, 6), origin=(3.0, 0.0, 0.0)))


def test_stages_are_found_by_their_registration():
    assert [type(stage) for stage in read_stages(["affine", "regnet"])] == [ElastixStage, RegNetStage]
    assert type(read_stages(ParameterMap({"Transform": ("EulerTransform",)}))[0]) is ElastixStage


def test_a_stage_of_another_package_runs_from_its_parameter_file(installed, tmp_path):
    (tmp_path / "shift.txt").write_text(shift(ShiftAlongX=1, ShiftMore=[0.5, 1.5]).to_text())
    fixed, moving = images()
    result = register(fixed, moving, tmp_path / "shift.txt")
    np.testing.assert_allclose(result.chain.map_points((1.0, 2.0, 3.0)), (4.0, 2.0, 3.0))
    np.testing.assert_allclose(result.warped.array, moving.array, atol=1e-3)
    assert result.stages[0].name == "Shift"
    assert result.summary()["stages"][0]["source"] == str(tmp_path / "shift.txt")
    assert set(installed) == {"regnet_itk.stages"}


def test_stages_are_given_in_any_way_and_in_any_mixture(tmp_path):
    (tmp_path / "b+c.txt").write_text(read_parameter_map("regnet").to_text())
    given = [ShiftStage(shift(ShiftAlongX=1)), "affine", tmp_path / "b+c.txt", read_parameter_map("regnet")]
    assert [type(stage) for stage in read_stages(given)] == [ShiftStage, ElastixStage, RegNetStage, RegNetStage]
    method = plan_method("mine", given)
    assert method.labels == ("Shift", "affine", "b_c", "RegNet_regnet")
    assert plan_method("one", given[0]).stages == (given[0],)
    fixed, moving = images()
    twice = register(fixed, moving, [given[0], ShiftStage(shift(ShiftUnit="cm", ShiftAlongX=-0.2))])
    np.testing.assert_allclose(twice.chain.map_points((0.0, 0.0, 0.0)), (-1.0, 0.0, 0.0))
    with pytest.raises(ParameterError, match="no stage was given"):
        read_stages([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ShiftAlongY": 1}, "there is no key 'ShiftAlongY'; did you mean 'ShiftAlongX'?"),
        ({"ShiftAlongX": -51}, "'ShiftAlongX' must be mm, at most 50 either way, not '-51'"),
        ({"ShiftAlongX": [1, 2]}, "'ShiftAlongX' takes one value, not 2"),
        ({"ShiftMore": [1, 0]}, "'ShiftMore' must be numbers above 0, not '0'"),
        ({"ShiftUnit": "inch"}, "'ShiftUnit' must be mm or cm, not 'inch'"),
        ({"RegNetModel": "x"}, 'needs (Registration "RegNetRegistration"), but the Registration is \'ShiftRegist'),
        ({"Registration": "ShiftRegistratio"}, "did you mean 'ShiftRegistration'?"),
        ({"Registration": "GoneRegistration"}, "of 'no_such_package:Stage' cannot be loaded: ModuleNotFoundError"),
        (
            {"Registration": "OtherRegistration"},
            "'pathlib:Path' is to be the Registration 'OtherRegistration', and is none",
        ),
        ({"Registration": "RegNetRegistration", "ShiftUnit": "mm"}, 'needs (Registration "ShiftRegistration")'),
    ],
)
def test_the_keys_of_another_package_are_checked_alike(installed, values, message):
    with pytest.raises(ParameterError) as error:
        read_stages(shift(**values))
    assert message in str(error.value)
    assert str(error.value).startswith("shift.txt: ")


def test_a_stage_may_refuse_before_anything_runs():
    class Refuses(ShiftStage):
        def check(self, initial, pair, options):
            raise ParameterError(f"{len(initial.links)} links, {pair}, {options.device}")

    with pytest.raises(ParameterError, match="0 links, None, cpu"):
        check_stages([ShiftStage(shift()), Refuses(shift())], TransformChain(), options=RunOptions(device="cpu"))


def test_later_stages_know_that_a_field_will_be_there():
    class Finds(ShiftStage):
        adds_field = True

    bending = ElastixStage(
        read_parameter_map("bspline_refine").with_(Metric=["AdvancedMeanSquares", "TransformBendingEnergyPenalty"])
    )
    check_stages([ShiftStage(shift()), bending], TransformChain())
    with pytest.raises(ParameterError, match="bending energy on top of a displacement field"):
        check_stages([Finds(shift()), bending], TransformChain())


def test_a_fingerprint_is_of_all_that_is_computed(tmp_path):
    class Other(ShiftStage):
        pass

    prints = {ShiftStage(shift()).fingerprint(), ShiftStage(shift(ShiftAlongX=1)).fingerprint()}
    prints |= {Other(shift()).fingerprint(), ShiftStage(shift(ShiftAlongX=2)).fingerprint()}
    assert len(prints) == 4
    elsewhere = dataclasses.replace(shift(), source="moved.txt")
    assert ShiftStage(elsewhere).fingerprint() in prints
    for content in (b"one", b"two"):
        (tmp_path / "m.safetensors").write_bytes(content)
        keys = {"Registration": ("RegNetRegistration",), "RegNetModel": (str(tmp_path / "m.safetensors"),)}
        prints.add(RegNetStage(ParameterMap(keys)).fingerprint())
    assert len(prints) == 6


def test_the_table_of_keys_in_the_documentation_is_what_is_declared():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    lines = {line.strip() for page in pages for line in page.read_text(encoding="utf-8").splitlines()}
    for settings in (RegNetSettings, ElastixSettings):
        assert [line for line in key_table(settings) if line not in lines] == []
    told = {found for line in lines for found in re.findall(r"^\| `(RegNet\w+)` \| ", line)}
    assert told == {*declared_keys(RegNetSettings), *declared_keys(ElastixSettings)}
    assert key_table(ShiftSettings)[2:] == [
        "| `ShiftAlongX` | 0 | `x`, mm |",
        "| `ShiftUnit` | `mm` | of the shift |",
        "| `ShiftMore` | none | all are added |",
    ]
