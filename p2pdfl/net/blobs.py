"""Blobs by digest: whoever holds one serves it, whoever needs one pulls it from the first holder that has it.

The digest is the only trust: a holder that lies, stalls or has nothing costs one attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256

import trio
from libp2p.peer.id import ID

from p2pdfl.net.limits import Limits
from p2pdfl.net.requests import Refused, Requests, Unreachable

PROTOCOL = "/p2pdfl/blob/1"
DIGEST_BYTES = 32
HASH_IN_THREAD_BYTES = 1 << 20
"""Above this, hashing takes over a millisecond and leaves the event loop for a thread."""

BlobSource = Callable[[bytes], bytes | None]
"""digest -> the blob, if it is held and may be served."""


class Blobs:
    def __init__(self, requests: Requests, source: BlobSource, *, limits: Limits, counters: Counter[str]) -> None:
        self._requests = requests
        self._source = source
        self._limits = limits
        self._counters = counters
        requests.serve(PROTOCOL, self._reply, request_bytes_max=DIGEST_BYTES)

    async def fetch(self, digest: bytes, holders: Sequence[ID], *, bytes_max: int) -> bytes | None:
        timeout_s = self._limits.blob_attempt_s + bytes_max / self._limits.blob_bytes_per_s_min
        for holder in holders:
            try:
                blob = await self._requests.request(
                    holder, PROTOCOL, digest, reply_bytes_max=bytes_max, timeout_s=timeout_s
                )
            except (Unreachable, Refused):
                self._counters["blob attempts failed"] += 1
                continue
            if await _digest(blob) == digest:
                return blob
            if blob:
                self._requests.refuse(holder, "blob is not what its digest says")
            else:  # an honest "not held"
                self._counters["blob attempts failed"] += 1
        return None

    async def _reply(self, peer: bytes, digest: bytes) -> bytes:
        return self._source(digest) or b""


async def _digest(blob: bytes) -> bytes:
    if len(blob) <= HASH_IN_THREAD_BYTES:
        return sha256(blob).digest()
    return await trio.to_thread.run_sync(lambda: sha256(blob).digest())
