from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base import bounded_json

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(_values)
@settings(max_examples=20, deadline=None)
def test_shallow_values_are_parsed(value: object) -> None:
    assert bounded_json.loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"":', b'["\\"",', b'["]",'])
def test_deep_ones_are_refused(opening: bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        bounded_json.loads(opening * 100_000)


def test_brackets_in_strings_do_not_count() -> None:
    text = "[" * 100_000 + '"'
    assert bounded_json.loads(json.dumps([text]).encode()) == [text]


@given(st.binary(max_size=50) | st.text('[]{}",:\\1 ', max_size=50).map(str.encode))
def test_anything_else_is_a_value_error(data: bytes) -> None:
    try:
        bounded_json.loads(data)
    except ValueError:
        return


@pytest.mark.parametrize("data", [b'"' + b"[" * 100_000, b'"' + b'\\"' * 1_000_000, b'["' + b"\\" * 1_000_001])
def test_unfinished_strings_are_refused_in_linear_time(data: bytes) -> None:
    with pytest.raises(ValueError, match="Unterminated string"):
        bounded_json.loads(data)
