"""One target under atheris (libFuzzer): what it may see, how it changes inputs, where it starts."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import atheris
import msgpack
from pydantic import ValidationError

SEEN = [
    "fuzz",
    "p2pdfl.base.codec",
    "p2pdfl.learning.compression",
    "p2pdfl.learning.quantize",
    "p2pdfl.net",
    "p2pdfl.protocol",
    "p2pdfl.base.types",
    "libp2p.crypto",
    "libp2p.peer.id",
    "libp2p.pubsub.validators",
]
with atheris.instrument_imports(include=SEEN):
    from p2pdfl.base.codec import Malformed

    from . import targets
    from .seeds import seeds

PLACES = 1024
ERRORS_SEEN_MAX = 20
EDGES = [0, 1, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1]


def fuzz(target: str, home: Path, options: list[str]) -> None:
    corpus = home / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (corpus / sha256(seed).hexdigest()).write_bytes(seed)
    mutator: dict[str, Any] = {}
    if target == "codec":
        targets.on_refusal = Refusals().see
        mutator["custom_mutator"] = change_codec_input

    def check(data: bytes) -> None:
        try:
            targets.TARGETS[target](data)
        except BaseException:
            # libFuzzer writes it too, under this name, but not if the interpreter's end comes before it
            (home / f"crash-{sha1(data).hexdigest()}").write_bytes(data)
            raise

    atheris.Setup(["fuzz", *options, str(corpus)], check, **mutator)
    atheris.Fuzz()


class Refusals:
    """msgpack and pydantic are not Python: where and why they refuse is told as a branch taken in one of many
    functions."""

    def __init__(self) -> None:
        self._places: list[Callable[[], int]] = []
        for number in range(PLACES):
            made: dict[str, Any] = {}
            exec(f"def place(): return {number}", made)
            self._places.append(atheris.instrument_func(made["place"]))

    def see(self, error: Malformed) -> None:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            self._reach(repr((str(error), type(cause).__name__)))
        elif cause.error_count() <= ERRORS_SEEN_MAX:
            for detail in cause.errors(include_url=False, include_context=False, include_input=False):
                path = tuple(step for step in detail["loc"] if isinstance(step, str))
                self._reach(repr((str(error), path, detail["type"])))

    def _reach(self, what: str) -> None:
        self._places[crc32(what.encode()) % PLACES]()


def change_codec_input(data: bytes, size_max: int, seed: int) -> bytes:
    """Half of the time as a tree of values, so that the result is msgpack again."""
    rng = random.Random(seed)
    if not data or rng.randrange(2):
        return bytes(atheris.Mutate(data, size_max))
    try:
        tree = msgpack.unpackb(data[1:], raw=True, use_list=True, strict_map_key=False)
        for _ in range(rng.randint(1, 3)):
            tree = _changed(tree, rng)
        changed = bytes([rng.choice([data[0], data[0], rng.randrange(256)])]) + msgpack.packb(tree)
    except (ValueError, OverflowError, TypeError, RecursionError, msgpack.UnpackException):
        return bytes(atheris.Mutate(data, size_max))
    return bytes(changed[:size_max])


def _changed(tree: Any, rng: random.Random) -> Any:
    if isinstance(tree, list) and tree and rng.randrange(5):
        place = rng.randrange(len(tree))
        match rng.randrange(8):
            case 0:
                return [*tree[:place], *tree[place + 1 :]]
            case 1:
                return [*tree[:place], tree[place], *tree[place:]]
            case 2:
                other = rng.randrange(len(tree))
                return [tree[other] if at == place else value for at, value in enumerate(tree)]
            case _:
                return [*tree[:place], _changed(tree[place], rng), *tree[place + 1 :]]
    if isinstance(tree, bytes) and rng.randrange(3):
        count = max(0, len(tree) + rng.choice([0, 0, -1, 1, 32]))
        return (tree + bytes(32))[:count]
    if isinstance(tree, int) and rng.randrange(3):
        return rng.choice([*EDGES, tree + 1, tree - 1])
    return rng.choice([None, [], [tree], b"", bytes(32), bytes(33), 0.5, True, "text", {}, rng.choice(EDGES)])
