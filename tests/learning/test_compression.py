"""What is sent comes out as it was; what is no update is refused before it takes memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from p2pdfl.base import params
from p2pdfl.base.codec import Malformed
from p2pdfl.base.task import Task
from p2pdfl.base.types import Outcome
from p2pdfl.byzantine import attacks
from p2pdfl.learning import compression
from p2pdfl.learning.compression import expand, shorten
from p2pdfl.learning.learner import Learner
from p2pdfl.learning.quantize import HEADER_BYTES, INT8, Coding, Header, encode, parse

from .frames import BLOCK, an_update, compressed, frame, skippable, with_checksum
from .test_quantize import both_codings, header, update_of, vectors

DIMENSION = 10_000
PAYLOAD = INT8.update_bytes(DIMENSION) - HEADER_BYTES
GIB = 1 << 30
LEVELS = [-5, 1, 3, 9, 19, 22]


def sent(rest: bytes) -> bytes:
    return header(DIMENSION).to_bytes() + rest


def refusal(update: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        expand(update, header(DIMENSION), INT8)
    return str(caught.value)


# --- what honest members send ------------------------------------------------------------------------------------


@both_codings
@settings(max_examples=50, deadline=None)
@given(vectors(allow_nan=True, allow_infinity=True), st.sampled_from(LEVELS))
def test_what_is_sent_comes_out_as_it_was(coding: Coding, vector: np.ndarray, level: int) -> None:
    update = encode(vector, header(vector.size), coding)
    short = shorten(update, level)
    assert len(short) <= len(update)
    assert short[:HEADER_BYTES] == header(vector.size).to_bytes()
    assert expand(short, header(vector.size), coding) == update


@both_codings
def test_an_update_gets_shorter(coding: Coding) -> None:
    update = an_update(header(DIMENSION), coding)
    assert len(shorten(update)) < 0.7 * len(update)


def test_what_does_not_get_shorter_is_sent_as_it_is() -> None:
    update = encode(np.ones(3), header(3))
    assert shorten(update) is update
    noise = np.random.default_rng(0).integers(-127, 128, DIMENSION) / 64
    assert shorten(encode(noise, header(DIMENSION))) == encode(noise, header(DIMENSION))


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_long_update_stays_within_the_window_that_others_take(level: int) -> None:
    """At every level that may be set; above 19 zstd wants larger windows, up to what there is to compress."""
    dimension = params.ZSTD_WINDOW_BYTES_MAX - 10_000
    update = encode(np.zeros(dimension), header(dimension))
    assert expand(shorten(update, level), header(dimension), INT8) == update


# --- what others send --------------------------------------------------------------------------------------------

ZEROS = compressed(bytes(PAYLOAD))
GOOD = compressed(an_update(header(DIMENSION), INT8)[HEADER_BYTES:])
UNDECLARED = compressed(bytes(PAYLOAD), write_content_size=False)

BAD: dict[str, tuple[bytes, str]] = {
    "a bomb that declares 1 GiB": (frame(GIB // 8, declared=GIB), "update does not declare its size"),
    "a bomb that declares nothing": (frame(GIB // 8, declared=None), "update does not declare its size"),
    "a bomb of one segment": (frame(GIB // 8, declared=GIB, window=None), "update does not declare its size"),
    "one byte too many declared": (compressed(bytes(PAYLOAD + 1)), "update does not declare its size"),
    "one byte too few declared": (compressed(bytes(PAYLOAD - 1)), "update does not declare its size"),
    "nothing declared": (UNDECLARED, "update does not declare its size"),
    "declared as it must be, but a bomb": (
        with_checksum(frame(GIB // 8, declared=PAYLOAD), ZEROS),
        "update does not decompress",
    ),
    "one byte more than declared": (
        with_checksum(frame(PAYLOAD + 1, declared=PAYLOAD), ZEROS),
        "update does not decompress",
    ),
    "one byte less than declared": (
        with_checksum(frame(PAYLOAD - 1, declared=PAYLOAD), ZEROS),
        "update does not decompress",
    ),
    "a window of 16 MiB": (frame(PAYLOAD, declared=PAYLOAD, window=14 << 3), "update's zstd window is too large"),
    "a window of 1 GiB": (frame(PAYLOAD, declared=PAYLOAD, window=20 << 3), "update's zstd window is too large"),
    "a window that no decoder takes": (frame(PAYLOAD, declared=PAYLOAD, window=255), "update is no zstd frame"),
    "a dictionary": (frame(PAYLOAD, declared=PAYLOAD, dictionary=7), "update needs a zstd dictionary"),
    "no checksum": (frame(PAYLOAD, declared=PAYLOAD), "update's zstd frame has no checksum"),
    "another checksum": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "update does not decompress"),
    "a frame cut short": (GOOD[:-5], "update does not decompress"),
    "a head cut short": (GOOD[:6], "update is no zstd frame"),
    "the magic number alone": (GOOD[:4], "update is no zstd frame"),
    "no magic number": (GOOD[4:], "update is no zstd frame"),
    "the magic number of zstd 0.7": (b"\x27" + GOOD[1:], "update is no zstd frame"),
    "a byte after the frame": (GOOD + b"\0", "update does not decompress"),
    "a second frame": (ZEROS + ZEROS, "update does not decompress"),
    "a second frame without content": (GOOD + compressed(b""), "update does not decompress"),
    "a skippable frame behind": (GOOD + skippable(b"more"), "update does not decompress"),
    "a skippable frame before": (skippable(b"more") + GOOD, "update is no zstd frame"),
    "a skippable frame of the right size": (
        bytes.fromhex("502a4d18") + PAYLOAD.to_bytes(4, "little") + bytes(100),
        "update is no zstd frame",
    ),
    "nothing": (b"", "update has the wrong length"),
    "more than the update": (bytes(PAYLOAD + 1), "update has the wrong length"),
    "a frame longer than the update": (
        compressed(np.random.default_rng(0).bytes(PAYLOAD)),
        "update has the wrong length",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_update__reject__bad_frame(what: str) -> None:
    rest, expected = BAD[what]
    assert refusal(sent(rest)) == expected


@pytest.mark.parametrize("what", [what for what in BAD if "bomb" in what])
def test_a_bomb_is_refused_without_the_memory_that_it_asks_for(what: str) -> None:
    update = sent(BAD[what][0])
    assert len(update) < PAYLOAD
    tracemalloc.start()
    refusal(update)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * PAYLOAD


def test_the_hand_made_frames_are_right_but_for_what_is_wrong_with_them() -> None:
    """Else they would be refused for another reason than they are there for."""
    right = with_checksum(frame(PAYLOAD, declared=PAYLOAD), ZEROS)
    assert expand(sent(right), header(DIMENSION), INT8) == sent(bytes(PAYLOAD))
    for content in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5):
        assert zstandard.ZstdDecompressor().decompress(frame(content, declared=content)) == bytes(content)


def test_the_attackers_bomb_is_one() -> None:
    bomb = attacks.zip_bomb(60)
    assert len(bomb) <= 60
    assert len(zstandard.ZstdDecompressor().decompress(bomb)) > 10_000 * len(bomb)
    assert zstandard.get_frame_parameters(attacks.zip_bomb(33_000)).content_size > 0.99 * GIB


def test_update__reject__another_header_before_it_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compression, "ZstdDecompressor")
    other = Header(task_id=bytes(32), round=7, author=bytes(range(20)), dimension=DIMENSION)
    assert refusal(other.to_bytes() + GOOD) == "update is under another header"


@both_codings
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_gives_what_an_update_may_be(coding: Coding, data: st.DataObject) -> None:
    update = an_update(header(500), coding)
    changed = bytearray(shorten(update))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        out = expand(bytes(changed), header(500), coding)
    except Malformed:
        return
    assert out == update  # what zstd does not look at


# --- a task with it ----------------------------------------------------------------------------------------------

HEADER = {"task_id": bytes(32), "round": 3, "author": bytes(20)}


@pytest.fixture(scope="module", params=["int8", "int4"])
def zipping(request: pytest.FixtureRequest) -> Learner:
    return Learner(Task(codes=request.param, compression="zstd"))


@pytest.fixture(scope="module")
def update(zipping: Learner) -> bytes:
    return zipping.train(zipping.initial_state(), seed=bytes(32), **HEADER)  # type: ignore[arg-type]


def otherwise(learner: Learner, update: bytes, level: int) -> bytes:
    """The same update as another library compresses it."""
    header = learner.header(**HEADER)  # type: ignore[arg-type]
    return shorten(learner._expanded(update, header), level)


@pytest.mark.parametrize("level", [-5, 3, 19])
def test_who_compresses_otherwise_sends_the_same_update(zipping: Learner, update: bytes, level: int) -> None:
    other = otherwise(zipping, update, level)
    assert other != update
    assert zipping.refusal(other, **HEADER) is None  # type: ignore[arg-type]
    assert zipping.compare(other, update) is zipping.compare(update, other) is Outcome.FALSE
    state = zipping.initial_state()
    assert zipping.aggregate(state, [other]).digest() == zipping.aggregate(state, [update]).digest()


def test_who_does_not_compress_sends_the_same_update(zipping: Learner, update: bytes) -> None:
    raw = zipping._expanded(update, zipping.header(**HEADER))  # type: ignore[arg-type]
    assert len(raw) == zipping.update_bytes_max > len(update)
    assert zipping.refusal(raw, **HEADER) is None  # type: ignore[arg-type]
    assert zipping.compare(raw, update) is Outcome.FALSE


def test_the_reference_replay_is_of_what_comes_out(zipping: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    before = zipping.reference_replay()
    monkeypatch.setattr(compression, "shorten", lambda update: shorten(update, 19))
    assert zipping.reference_replay() == before


def test_a_task_without_compression_takes_no_frame(learner: Learner) -> None:
    update = learner.train(learner.initial_state(), seed=bytes(32), **HEADER)  # type: ignore[arg-type]
    assert learner.refusal(shorten(update), **HEADER) == "update has the wrong length"  # type: ignore[arg-type]
    assert learner.compare(shorten(update), update) is Outcome.GUILTY


@pytest.mark.parametrize("what", BAD)
def test_a_bad_frame_is_guilty(what: str) -> None:
    learner = Learner(Task(compression="zstd"))
    replayed = learner.train(learner.initial_state(), seed=bytes(32), **HEADER)  # type: ignore[arg-type]
    assert learner.compare(learner.header(**HEADER).to_bytes() + BAD[what][0], replayed) is Outcome.GUILTY  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, 40, elements=st.floats(-1, 1)))
def test_bad_codes_are_refused_compressed_too(vector: np.ndarray) -> None:
    """What comes out of a frame is parsed as what came without one."""
    codes = np.zeros(DIMENSION, np.int8)
    codes[:40] = np.rint(vector * 127)
    codes[40] = -128
    update = update_of([-10] * INT8.chunk_count(DIMENSION), codes)
    out = expand(shorten(update), header(DIMENSION), INT8)
    with pytest.raises(Malformed, match=r"^update has a code of -128$"):
        parse(out, header(DIMENSION), INT8)
