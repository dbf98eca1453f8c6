"""The fuzzed properties hold for every seed, for cuts of it, and for what fuzzing has found."""

from __future__ import annotations

import random

import pytest

from .seeds import seeds
from .targets import TARGETS, WIRE_TYPES

FOUND: dict[str, list[str]] = {"codec": [], "gossip": [], "pull": []}
"""Inputs in hexadecimal that once broke a property or came close to it; each says what it was."""


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    for data in seeds(target):
        TARGETS[target](data)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_seeds_with_a_byte_changed(target: str) -> None:
    chance = random.Random(0)
    for data in seeds(target):
        for _ in range(5):
            changed = bytearray(data)
            changed[chance.randrange(len(changed))] = chance.randrange(256)
            TARGETS[target](bytes(changed))


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_has_found(target: str) -> None:
    for data in FOUND[target]:
        TARGETS[target](bytes.fromhex(data))


def test_every_wire_type_has_a_seed() -> None:
    assert {data[0] for data in seeds("codec")} == set(range(len(WIRE_TYPES)))
