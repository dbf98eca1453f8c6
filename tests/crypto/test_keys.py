"""One seed, three keys that say nothing about each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pdfl.crypto import group
from p2pdfl.crypto.envelope import Signer
from p2pdfl.crypto.keys import derive

SEED = bytes(range(32))

seeds = st.binary(min_size=32, max_size=32)


@given(seed=seeds)
def test_the_same_seed_gives_the_same_keys(seed: bytes) -> None:
    assert derive(seed) == derive(seed)


@given(seed=seeds)
def test_the_three_secrets_differ(seed: bytes) -> None:
    keys = derive(seed)
    assert len({keys.peer_secret, keys.chain_secret, keys.pvss_secret, seed}) == 4


@given(seed=seeds)
def test_secrets_are_usable_scalars(seed: bytes) -> None:
    keys = derive(seed)
    assert keys.address == Signer(keys.chain_secret).address
    assert keys.pvss_key == group.public_key(keys.pvss_secret)
    assert len(keys.peer_secret) == 32


def test_the_derivation_does_not_drift() -> None:
    """A peer's identity is its seed: another derivation would orphan its deposit."""
    keys = derive(SEED)
    assert keys.address.hex() == "79f193d328536f27a63cde403ddc7e15acde02b9"
    assert keys.pvss_key.hex() == "03b85e8c2a078ba6a6ecbf034cb5264b25d4dcd32068955bc3a8f5d40655ce0432"
    assert keys.peer_secret.hex() == "c525834f0906e60602eddd0df904d2c7b63ab55af27f33a27b1edf6896e36f7a"


def test_repr_shows_no_secret() -> None:
    keys = derive(SEED)
    shown = repr(keys)
    for secret in (keys.peer_secret, keys.chain_secret, keys.pvss_secret):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert "secret" not in shown


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        derive(bytes(length))
