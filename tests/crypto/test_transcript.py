"""Different lists of parts never hash alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.crypto import group, transcript

parts = st.lists(st.binary(max_size=8), max_size=4)


@given(one=parts, other=parts)
def test_parts_are_kept_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (transcript.digest("test", *one) == transcript.digest("test", *other)) == (one == other)


def test_domains_are_kept_apart() -> None:
    assert transcript.digest("one", b"part") != transcript.digest("two", b"part")
    assert transcript.digest("one", b"") != transcript.digest("one")


@given(parts=parts)
def test_a_challenge_is_a_scalar(parts: list[bytes]) -> None:
    assert 0 <= transcript.challenge("test", *parts) < group.ORDER


def test_a_number_is_one_word_of_eight_bytes() -> None:
    assert transcript.word(0x0102) == bytes(6) + b"\x01\x02"
