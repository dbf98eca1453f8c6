import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from p2pdfl.codec import Malformed
from p2pdfl.learning.quantize import (
    CHUNK,
    EXPONENT_MAX,
    EXPONENT_MIN,
    Header,
    chunk_count,
    decode,
    encode,
    header_of,
    parse,
    update_bytes,
)

HEADER_BYTES = 68


def header(dimension: int) -> Header:
    return Header(task_id=bytes(range(32)), round=7, author=bytes(range(20)), dimension=dimension)


def update_of(exponents: list[int], codes: np.ndarray) -> bytes:
    payload = np.array(exponents, np.int8).tobytes() + codes.astype(np.int8).tobytes()
    return header(codes.size).to_bytes() + payload


def vectors(**values: bool) -> st.SearchStrategy[np.ndarray]:
    dimensions = st.one_of(st.integers(1, 40), st.sampled_from([CHUNK, CHUNK + 1]))
    elements = st.floats(**values)  # type: ignore[arg-type]
    return dimensions.flatmap(lambda dimension: arrays(np.float64, dimension, elements=elements))


@settings(max_examples=50, deadline=None)
@given(vectors(allow_nan=True, allow_infinity=True))
def test_every_vector_has_an_encoding_that_decodes(vector: np.ndarray) -> None:
    decoded = decode(encode(vector, header(vector.size)), header(vector.size))
    assert np.isfinite(decoded).all()


@settings(max_examples=50, deadline=None)
@given(vectors(allow_nan=True, allow_infinity=True))
def test_a_decoded_vector_has_the_same_encoding_again(vector: np.ndarray) -> None:
    update = encode(vector, header(vector.size))
    assert encode(decode(update, header(vector.size)), header(vector.size)) == update


@settings(max_examples=50, deadline=None)
@given(vectors(min_value=-1e15, max_value=1e15))  # type: ignore[arg-type]
def test_decoding_is_off_by_at_most_half_a_step(vector: np.ndarray) -> None:
    decoded = decode(encode(vector, header(vector.size)), header(vector.size))
    for first in range(0, vector.size, CHUNK):
        chunk = slice(first, first + CHUNK)
        # the largest code is at least 64, so a step is at most the largest magnitude / 63.5
        step = max(np.abs(vector[chunk]).max() / 63.5, 2.0**EXPONENT_MIN)
        assert (np.abs(decoded[chunk] - vector[chunk]) <= step / 2).all()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([1, 2, CHUNK, CHUNK + 1]),
    st.sampled_from([EXPONENT_MIN, EXPONENT_MIN + 1, -14, EXPONENT_MAX]),
    st.sampled_from([0, 1, 63, 64, 127]),
    st.integers(0, 2**32 - 1),
)
def test_each_decoded_vector_has_one_encoding(dimension: int, exponent: int, largest: int, seed: int) -> None:
    """Whatever parses is what the quantizer would have written."""
    codes = np.random.default_rng(seed).integers(-largest, largest, dimension, endpoint=True)
    exponents = [exponent] * chunk_count(dimension)
    update = update_of(exponents, codes)
    try:
        decoded = decode(update, header(dimension))
    except Malformed as error:
        assert str(error) == "update has an exponent that is not the smallest"  # noqa: PT017
    else:
        assert encode(decoded, header(dimension)) == update


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(Malformed):
        parse(junk, header(5))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_decodes_to_another_vector(data: st.DataObject) -> None:
    vector = np.linspace(-1, 1, 30)
    update = bytearray(encode(vector, header(30)))
    position = data.draw(st.integers(0, len(update) - 1))
    update[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode(bytes(update), header(30))
    except Malformed:
        return
    assert position >= HEADER_BYTES
    assert encode(decoded, header(30)) == bytes(update)


def test_layout_is_header_exponents_codes() -> None:
    vector = np.zeros(CHUNK + 2)
    vector[0], vector[CHUNK] = 127.0, -1.0
    update = encode(vector, header(CHUNK + 2))
    assert update[:HEADER_BYTES] == bytes(range(32)) + (7).to_bytes(8, "big") + bytes(range(20)) + (1026).to_bytes(
        8, "big"
    )
    assert update[HEADER_BYTES : HEADER_BYTES + 2] == bytes([0, 256 - 6])
    assert update[HEADER_BYTES + 2] == 127
    assert update[-2:] == bytes([256 - 64, 0])
    assert len(update) == update_bytes(CHUNK + 2)


def test_the_header_can_be_read_back() -> None:
    assert header_of(encode(np.ones(3), header(3))) == header(3)


def test_a_thousandfold_update_can_be_expressed() -> None:
    vector = np.linspace(-0.01, 0.01, 50)
    decoded = decode(encode(vector * -1000, header(50)), header(50))
    assert np.allclose(decoded, vector * -1000, atol=0.1)


def test_infinities_and_too_large_values_saturate_and_nan_is_zero() -> None:
    vector = np.array([np.inf, -np.inf, 1e300, np.nan])
    top = 127 * 2.0**EXPONENT_MAX
    assert decode(encode(vector, header(4)), header(4)).tolist() == [top, -top, top, 0.0]


def test_a_zero_chunk_has_the_lowest_exponent() -> None:
    update = encode(np.zeros(3), header(3))
    assert update[HEADER_BYTES:] == bytes([256 + EXPONENT_MIN, 0, 0, 0])


@pytest.mark.parametrize("cut", [slice(0, -1), slice(1, None), slice(0, 0), slice(0, HEADER_BYTES)])
def test_update__reject__wrong_length(cut: slice) -> None:
    update = encode(np.ones(3), header(3))
    with pytest.raises(Malformed, match=r"^update has the wrong length$"):
        parse(update[cut], header(3))
    with pytest.raises(Malformed, match=r"^update has the wrong length$"):
        parse(update + b"\0", header(3))


@pytest.mark.parametrize(
    "other",
    [
        Header(task_id=bytes(32), round=7, author=bytes(range(20)), dimension=3),
        Header(task_id=bytes(range(32)), round=8, author=bytes(range(20)), dimension=3),
        Header(task_id=bytes(range(32)), round=7, author=bytes(20), dimension=3),
    ],
)
def test_update__reject__another_header(other: Header) -> None:
    with pytest.raises(Malformed, match=r"^update is under another header$"):
        parse(encode(np.ones(3), other), header(3))


def test_update__reject__dimension_stated_is_not_the_dimension_carried() -> None:
    update = header(4).to_bytes() + encode(np.ones(3), header(3))[HEADER_BYTES:]
    with pytest.raises(Malformed, match=r"^update is under another header$"):
        parse(update, header(3))


def test_update__reject__code_minus_128() -> None:
    with pytest.raises(Malformed, match=r"^update has a code of -128$"):
        parse(update_of([0], np.array([-128, 3])), header(2))


@pytest.mark.parametrize("exponent", [-128, EXPONENT_MIN - 1, EXPONENT_MAX + 1, 127])
def test_update__reject__exponent_out_of_range(exponent: int) -> None:
    with pytest.raises(Malformed, match=r"^update has an exponent out of range$"):
        parse(update_of([exponent], np.array([127, 3])), header(2))


@pytest.mark.parametrize("largest", [0, 1, 63, -63])
def test_update__reject__exponent_is_not_the_smallest(largest: int) -> None:
    with pytest.raises(Malformed, match=r"^update has an exponent that is not the smallest$"):
        parse(update_of([EXPONENT_MIN + 1], np.array([largest, 0])), header(2))
