"""The fuzzed properties hold for every seed, for cuts of it, and for what fuzzing has found."""

from __future__ import annotations

import random

import pytest

from .seeds import seeds
from .targets import TARGETS, WIRE_TYPES

FOUND: dict[str, list[str]] = {
    "codec": [],
    "gossip": [],
    "update": [],
    "pull": [
        # the only honest holder had its two pieces waiting behind a lie, and was asked for nothing more
        "04c100001c0c011d27001c0c011d00001c0c00000000000000b343a689bb12c6e7ca4a5a44a459046b8dbbe8f70e44cd8739739a7e74a117202e0443027aaf1fa95b7f86589578df43e413160c00001c0c011d",
    ],
}
"""Inputs in hexadecimal that once broke a property or came close to it; each says what it was."""


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    for data in seeds(target):
        TARGETS[target](data)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_seeds_with_a_byte_changed(target: str) -> None:
    rng = random.Random(0)
    for data in seeds(target):
        for _ in range(5):
            changed = bytearray(data)
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            TARGETS[target](bytes(changed))


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_has_found(target: str) -> None:
    for data in FOUND[target]:
        TARGETS[target](bytes.fromhex(data))


def test_every_wire_type_has_a_seed() -> None:
    assert {data[0] for data in seeds("codec")} == set(range(len(WIRE_TYPES)))
