"""Blobs: the digest decides, not the holder."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
import trio

from p2pdfl.net import Limits
from p2pdfl.net.blobs import PROTOCOL

from .loopback import network, networks

pytestmark = [pytest.mark.net, pytest.mark.slow]

BLOB = b"update" * 100_000
DIGEST = sha256(BLOB).digest()


def holding(blob: bytes) -> Callable[[bytes], bytes | None]:
    return lambda digest: blob if digest == sha256(blob).digest() else None


async def test_a_blob_is_pulled_from_the_first_holder_that_has_it() -> None:
    async with networks(3, blob_source=holding(BLOB)) as (one, *holders):
        assert await one.fetch(DIGEST, [holder.peer_id for holder in holders], bytes_max=len(BLOB)) == BLOB
        assert holders[0].counters["requests_served"] == 1
        assert holders[1].counters["requests_served"] == 0


async def test_a_large_blob_is_pulled_whole() -> None:
    blob = bytes(8 << 20)
    async with networks(2, blob_source=holding(blob)) as (one, holder):
        with trio.fail_after(20):
            assert await one.fetch(sha256(blob).digest(), [holder.peer_id], bytes_max=len(blob)) == blob


async def test_a_liar_a_staller_and_who_has_nothing_cost_one_attempt_each() -> None:
    limits = Limits(blob_attempt_s=0.3, blob_bytes_per_s_min=1 << 30)
    async with networks(5, limits=limits, blob_source=holding(BLOB)) as (one, liar, staller, empty, holder):

        async def lie(peer: bytes, digest: bytes) -> bytes:
            return b"something else"

        async def stall(peer: bytes, digest: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        async def hold_nothing(peer: bytes, digest: bytes) -> bytes:
            return b""

        liar.serve(PROTOCOL, lie, request_bytes_max=32)
        staller.serve(PROTOCOL, stall, request_bytes_max=32)
        empty.serve(PROTOCOL, hold_nothing, request_bytes_max=32)
        others = [peer.peer_id for peer in (liar, staller, empty)]
        with trio.fail_after(5):
            assert await one.fetch(DIGEST, [*others, holder.peer_id], bytes_max=len(BLOB)) == BLOB
            assert await one.fetch(DIGEST, others, bytes_max=len(BLOB)) is None
        assert one.counters["refused: blob is not what its digest says"] == 2


async def test_a_blob_longer_than_asked_for_is_not_taken() -> None:
    async with networks(2, blob_source=holding(BLOB)) as (one, holder):
        assert await one.fetch(DIGEST, [holder.peer_id], bytes_max=len(BLOB) - 1) is None


async def test_an_empty_blob_is_a_blob() -> None:
    async with networks(2, blob_source=holding(b"")) as (one, holder):
        assert await one.fetch(sha256(b"").digest(), [holder.peer_id], bytes_max=0) == b""


async def test_who_is_gone_does_not_stop_a_fetch() -> None:
    async with network("gone") as gone:
        gone_id = gone.peer_id
    async with networks(2, blob_source=holding(BLOB)) as (one, holder):
        assert await one.fetch(DIGEST, [gone_id, holder.peer_id], bytes_max=len(BLOB)) == BLOB
