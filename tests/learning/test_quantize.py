import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from p2pdfl.base.codec import Malformed
from p2pdfl.learning.quantize import (
    EXPONENT_MAX,
    EXPONENT_MIN,
    HEADER_BYTES,
    INT4,
    INT8,
    Coding,
    Header,
    decode,
    encode,
    header_of,
    parse,
)

CHUNK = INT8.chunk

both_codings = pytest.mark.parametrize("coding", [INT8, INT4], ids=["int8", "int4"])


def header(dimension: int) -> Header:
    return Header(task_id=bytes(range(32)), round=7, author=bytes(range(20)), dimension=dimension)


def update_of(exponents: list[int], codes: np.ndarray, coding: Coding = INT8) -> bytes:
    whole = codes.astype(np.int8).tolist()
    if coding is INT4:
        halves = [code & 15 for code in whole] + [0] * (len(whole) % 2)
        body = bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True))
    else:
        body = bytes(code & 255 for code in whole)
    return header(codes.size).to_bytes() + np.array(exponents, np.int8).tobytes() + body


def vectors(**values: bool) -> st.SearchStrategy[np.ndarray]:
    dimensions = st.one_of(st.integers(1, 40), st.sampled_from([INT4.chunk + 1, CHUNK, CHUNK + 1]))
    elements = st.floats(**values)  # type: ignore[arg-type]
    return dimensions.flatmap(lambda dimension: arrays(np.float64, dimension, elements=elements))


@both_codings
@settings(max_examples=50, deadline=None)
@given(vectors(allow_nan=True, allow_infinity=True))
def test_every_vector_has_an_encoding_that_decodes(coding: Coding, vector: np.ndarray) -> None:
    decoded = decode(encode(vector, header(vector.size), coding), header(vector.size), coding)
    assert np.isfinite(decoded).all()


@both_codings
@settings(max_examples=50, deadline=None)
@given(vectors(allow_nan=True, allow_infinity=True))
def test_a_decoded_vector_has_the_same_encoding_again(coding: Coding, vector: np.ndarray) -> None:
    update = encode(vector, header(vector.size), coding)
    assert encode(decode(update, header(vector.size), coding), header(vector.size), coding) == update


@both_codings
@settings(max_examples=50, deadline=None)
@given(vectors(min_value=-1e15, max_value=1e15))  # type: ignore[arg-type]
def test_decoding_is_off_by_at_most_half_a_step(coding: Coding, vector: np.ndarray) -> None:
    decoded = decode(encode(vector, header(vector.size), coding), header(vector.size), coding)
    for first in range(0, vector.size, coding.chunk):
        chunk = slice(first, first + coding.chunk)
        # the largest code is at least 64 or 4, so a step is at most the largest magnitude / 63.5 or 3.5
        step = max(np.abs(vector[chunk]).max() / (coding.code_max / 2), 2.0**EXPONENT_MIN)
        assert (np.abs(decoded[chunk] - vector[chunk]) <= step / 2).all()


@both_codings
@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([1, 2, CHUNK, CHUNK + 1]),
    st.sampled_from([EXPONENT_MIN, EXPONENT_MIN + 1, -14, EXPONENT_MAX]),
    st.sampled_from([0, 1, 3, 4, 7, 63, 64, 127]),
    st.integers(0, 2**32 - 1),
)
def test_each_decoded_vector_has_one_encoding(
    coding: Coding, dimension: int, exponent: int, largest: int, seed: int
) -> None:
    """Whatever parses is what the quantizer would have written."""
    largest = min(largest, coding.code_max)
    codes = np.random.default_rng(seed).integers(-largest, largest, dimension, endpoint=True)
    exponents = [exponent] * coding.chunk_count(dimension)
    update = update_of(exponents, codes, coding)
    try:
        decoded = decode(update, header(dimension), coding)
    except Malformed as error:
        assert str(error) == "update has an exponent that is not the smallest"  # noqa: PT017
    else:
        assert encode(decoded, header(dimension), coding) == update


@both_codings
@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(coding: Coding, junk: bytes) -> None:
    with pytest.raises(Malformed):
        parse(junk, header(5), coding)


@both_codings
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_decodes_to_another_vector(coding: Coding, data: st.DataObject) -> None:
    size = data.draw(st.integers(29, 30))
    vector = np.linspace(-1, 1, size)
    update = bytearray(encode(vector, header(size), coding))
    position = data.draw(st.integers(0, len(update) - 1))
    update[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode(bytes(update), header(size), coding)
    except Malformed:
        return
    assert position >= HEADER_BYTES
    assert encode(decoded, header(size), coding) == bytes(update)


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
    assert len(update) == INT8.update_bytes(CHUNK + 2)


def test_two_int4_codes_share_a_byte_and_the_first_has_the_lower_half() -> None:
    vector = np.zeros(INT4.chunk + 3)
    vector[:3], vector[INT4.chunk :] = (7.0, -7.0, 1.0), (-4.0, 0.0, 2.0)
    update = encode(vector, header(vector.size), INT4)
    assert update[HEADER_BYTES:][:2] == bytes([0, 0])
    assert update[HEADER_BYTES + 2 :][:2] == bytes([0x97, 0x01])
    assert update[-2:] == bytes([0x0C, 0x02])
    assert len(update) == INT4.update_bytes(vector.size) == HEADER_BYTES + 2 + INT4.chunk // 2 + 2


def test_the_header_can_be_read_back() -> None:
    assert header_of(encode(np.ones(3), header(3))) == header(3)


def test_a_thousandfold_update_can_be_expressed() -> None:
    vector = np.linspace(-0.01, 0.01, 50)
    decoded = decode(encode(vector * -1000, header(50)), header(50))
    assert np.allclose(decoded, vector * -1000, atol=0.1)


@both_codings
def test_infinities_and_too_large_values_saturate_and_nan_is_zero(coding: Coding) -> None:
    vector = np.array([np.inf, -np.inf, 1e300, np.nan])
    top = coding.code_max * 2.0**EXPONENT_MAX
    assert decode(encode(vector, header(4), coding), header(4), coding).tolist() == [top, -top, top, 0.0]


@both_codings
def test_a_zero_chunk_has_the_lowest_exponent(coding: Coding) -> None:
    update = encode(np.zeros(4), header(4), coding)
    assert update[HEADER_BYTES:] == bytes([256 + EXPONENT_MIN]).ljust(1 + coding.bits // 2, b"\0")


# --- what no quantizer writes ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("codes", [[-8, 3], [7, -8], [7, 3, -8]])
def test_update__reject__code_minus_8(codes: list[int]) -> None:
    with pytest.raises(Malformed, match=r"^update has a code of -8$"):
        parse(update_of([0], np.array(codes), INT4), header(len(codes)), INT4)


@pytest.mark.parametrize("half", [1, 7, 15])
def test_update__reject__half_a_byte_left_over(half: int) -> None:
    update = update_of([0], np.array([7, 3, 1]), INT4)
    with pytest.raises(Malformed, match=r"^update does not end in zeros$"):
        parse(update[:-1] + bytes([update[-1] | half << 4]), header(3), INT4)


@both_codings
@pytest.mark.parametrize("exponent", [-128, EXPONENT_MIN - 1, EXPONENT_MAX + 1, 127])
def test_update__reject__exponent_out_of_range(exponent: int, coding: Coding) -> None:
    """There are no other scales: neither NaN nor an infinite nor a denormal one can be said."""
    with pytest.raises(Malformed, match=r"^update has an exponent out of range$"):
        parse(update_of([exponent], np.array([coding.code_max, 3]), coding), header(2), coding)


@both_codings
@pytest.mark.parametrize("part", [0.0, 0.5, -0.5])
def test_update__reject__exponent_is_not_the_smallest(part: float, coding: Coding) -> None:
    largest = int(part * coding.code_max)
    with pytest.raises(Malformed, match=r"^update has an exponent that is not the smallest$"):
        parse(update_of([EXPONENT_MIN + 1], np.array([largest, 0]), coding), header(2), coding)


def test_update__reject__other_codes() -> None:
    update = encode(np.ones(3), header(3), INT4)
    with pytest.raises(Malformed, match=r"^update has the wrong length$"):
        parse(update, header(3), INT8)
