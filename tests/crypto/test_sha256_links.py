"""Links of sha256 against hashlib's whole."""

from __future__ import annotations

import ctypes
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.crypto import sha256_links
from p2pdfl.crypto.sha256_links import INITIAL_STATE, digest_after, state_after


@given(blocks=st.lists(st.binary(min_size=64, max_size=64), max_size=5), rest=st.binary(max_size=200))
def test_links_make_the_digest(blocks: list[bytes], rest: bytes) -> None:
    state = INITIAL_STATE
    for block in blocks:
        state = state_after(state, block)
    message = b"".join(blocks) + rest
    assert digest_after(state, 64 * len(blocks), rest) == sha256(message).digest()
    assert state_after(INITIAL_STATE, b"".join(blocks)) == state


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120])
def test_the_padding_is_right_around_its_edges(length: int) -> None:
    assert digest_after(INITIAL_STATE, 0, b"x" * length) == sha256(b"x" * length).digest()


def test_the_length_is_bound_by_the_digest() -> None:
    state = state_after(INITIAL_STATE, bytes(64))
    assert digest_after(state, 64, b"rest") != digest_after(state, 128, b"rest")


def test_a_state_is_the_standards_and_not_this_machines() -> None:
    """FIPS 180-4's example of one block, "abc", padded by hand: its last state is its digest."""
    block = b"abc\x80" + bytes(52) + (24).to_bytes(8, "big")
    assert state_after(INITIAL_STATE, block) == sha256(b"abc").digest()


def test_a_message_longer_than_512_megabytes_has_its_length_in_both_words() -> None:
    """The bits of its length do not fit 32: padded by hand, as above."""
    before = (1 << 29) + 64
    block = b"\x80" + bytes(55) + (8 * before).to_bytes(8, "big")
    assert digest_after(INITIAL_STATE, before, b"") == state_after(INITIAL_STATE, block)


def test_the_context_is_as_large_as_openssls() -> None:
    """Else OpenSSL writes beyond it: eight words, the length in two, a block, and two counters."""
    assert ctypes.sizeof(sha256_links._Context) == 4 * (8 + 2 + 16 + 2)
