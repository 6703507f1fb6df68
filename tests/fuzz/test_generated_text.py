"""Text that nobody would write, made by hypothesis: every reader reads it or refuses it in one line."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import ParameterError, RegNetItkError
from regnet_itk.pairs import read_pairs
from regnet_itk.parameters import ParameterMap, parse_parameter_text, parse_parameter_toml
from regnet_itk.training.config import read_training_config
from regnet_itk.transforms.elastix_reading import read_chain

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]

EXAMPLES = int(150 * float(os.environ.get("REGNET_ITK_FUZZ", "1")))
often = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

WORDS = st.one_of(
    st.sampled_from([
        "point", "index", "x", "y", "z", "name", "(", ")", '"', "Transform", "AffineTransform", "Size",
        "NumberOfParameters", "TransformParameters", "POINTS", "DATASET POLYDATA", "# vtk DataFile Version 3.0",
        "ASCII", "fixed", "moving",
        "network", "[[phases]]", "steps", "=", "[", "]", "{", "}", "#Insight Transform File V1.0", "Parameters:",
        "# Markups fiducial file", "# CoordinateSystem = LPS", "//", "nan", "inf", "1e999",
    ]),
    st.floats().map(repr), st.integers().map(str), st.text(max_size=6),
)  # fmt: skip
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", ",", ";", "\n", "\t", "", "\n\n", ": "])), max_size=60).map(
    lambda parts: "".join(word + end for word, end in parts)
)
READERS = {
    ".txt": (read_landmarks, read_chain),
    ".vtk": (read_landmarks,),
    ".csv": (read_landmarks, read_pairs),
    ".fcsv": (read_landmarks,),
    ".mrk.json": (read_landmarks,),
    ".toml": (read_chain, read_training_config),
}


@pytest.mark.parametrize("suffix", READERS)
@often
@given(TEXTS)
def test_generated_text_is_read_or_refused(suffix, tmp_path, text):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in READERS[suffix]:
        try:
            read(path)
        except RegNetItkError as error:
            assert 0 < len(str(error)) < 1200


KEYS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=20)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers().map(str),
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"'), min_size=1, max_size=12),
)


@often
@given(st.dictionaries(KEYS, st.lists(VALUES, min_size=1, max_size=5).map(tuple), max_size=8))
def test_parameter_maps_survive_both_of_their_formats(values):
    written = ParameterMap(values)
    assert parse_parameter_text(written.to_text()).values == values
    again = parse_parameter_toml(written.to_toml()).values
    assert set(again) == set(values)
    for key, texts in values.items():
        assert len(again[key]) == len(texts)
        for before, after in zip(texts, again[key], strict=True):
            assert before == after or math.isclose(float(before), float(after), rel_tol=0)


@often
@given(st.text(max_size=300))
def test_any_text_is_a_parameter_map_or_refused(text):
    for parse in (parse_parameter_text, parse_parameter_toml):
        try:
            found = parse(text)
        except ParameterError:
            continue
        assert all(key and texts for key, texts in found.values.items())
