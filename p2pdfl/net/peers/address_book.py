"""Peers that a node met before, on disk, so that a restart finds the network with every bootstrap gone.

One small JSON file, newest peers first.  It was written by us but what is in it came from peers, and a disk may have
done anything to it: a peer that does not read as what would be written is left out and counted, and a file that is no
list of peers is set aside; either with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pdfl.base import bounded_json
from p2pdfl.net.addresses import is_dialable

VERSION = 1
PEERS_MAX = 128
"""Four times the largest task tested."""
ADDRESSES_MAX = 4
"""Of one peer."""
ADDRESS_CHARS_MAX = 256
FILE_BYTES_MAX = PEERS_MAX * (ADDRESSES_MAX * (ADDRESS_CHARS_MAX + 16) + 256)
SEEN_S_MAX = 2**40
BROKEN_SUFFIX = ".broken"

logger = logging.getLogger(__name__)


class Broken(Exception):
    """What is on disk is not what this module writes."""


@dataclass
class _Entry:
    seen_s: int
    """Unix time."""
    worked: list[Multiaddr] = field(default_factory=list)
    """Dialled by us with success, the latest first."""
    announced: list[Multiaddr] = field(default_factory=list)

    def addresses(self) -> list[Multiaddr]:
        return list(dict.fromkeys([*self.worked, *self.announced]))[:ADDRESSES_MAX]


class AddressBook:
    def __init__(self, path: Path | None, counters: Counter[str]) -> None:
        """With no path, nothing outlives the process."""
        self._path = path
        self._entries: dict[ID, _Entry] = {}
        self._written: dict[ID, list[Multiaddr]] = {}
        if path is None:
            return
        try:
            self._entries, broken = _read(path)
            if broken:
                counters["remembered peers unreadable"] += broken
                logger.warning("%s: %d of its peers cannot be read and are left out", path, broken)
        except FileNotFoundError:
            pass
        except (OSError, Broken) as error:
            logger.warning("%s: %s; it is set aside, peers are found anew", path, error)
            with suppress(OSError):
                os.replace(path, path.with_name(path.name + BROKEN_SUFFIX))
        self._written = self.peers()

    def peers(self) -> dict[ID, list[Multiaddr]]:
        """Whom to dial and where, who was seen last first."""
        newest = sorted(self._entries.items(), key=lambda item: -item[1].seen_s)
        return {peer: entry.addresses() for peer, entry in newest}

    def addresses(self, peer: ID) -> list[Multiaddr]:
        entry = self._entries.get(peer)
        return [] if entry is None else entry.addresses()

    def worked(self, peer: ID, address: Multiaddr) -> None:
        entry = self._seen(peer)
        entry.worked = [address, *(other for other in entry.worked if other != address)][:ADDRESSES_MAX]

    def announced(self, peer: ID, addresses: Iterable[Multiaddr]) -> None:
        """A connected peer says that it can be dialled there."""
        self._seen(peer).announced = sorted(addresses, key=str)[:ADDRESSES_MAX]

    def keep_only(self, peers: Collection[ID]) -> None:
        self._entries = {peer: entry for peer, entry in self._entries.items() if peer in peers}

    @property
    def is_worth_writing(self) -> bool:
        """Whether somebody or some address is new or gone; when each was seen may wait for that."""
        return self._path is not None and self.peers() != self._written

    async def write(self) -> None:
        """Whole or not at all.  A disk that fails costs a warning."""
        if self._path is None:
            return
        peers = self.peers()
        text = json.dumps(
            {
                "version": VERSION,
                "peers": [
                    {
                        "peer_id": peer.to_base58(),
                        "seen_s": self._entries[peer].seen_s,
                        "addresses": [str(address) for address in addresses],
                    }
                    for peer, addresses in peers.items()
                ],
            },
            indent=1,
            ensure_ascii=False,  # an escape has three times the bytes of its letter, which the bound knows nothing of
        )
        self._written = peers
        try:
            await trio.to_thread.run_sync(_write, self._path, text)
        except OSError as error:
            logger.warning("%s: %s; peers are not remembered", self._path, error)

    def _seen(self, peer: ID) -> _Entry:
        entry = self._entries.setdefault(peer, _Entry(0))
        entry.seen_s = time.time_ns() // 10**9
        if len(self._entries) > PEERS_MAX:
            del self._entries[min(self._entries, key=lambda other: self._entries[other].seen_s)]
        return entry


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _read(path: Path) -> tuple[dict[ID, _Entry], int]:
    """And how many of them are broken.  Raises FileNotFoundError, OSError, Broken."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise Broken(f"over {FILE_BYTES_MAX} bytes")
    try:
        found = bounded_json.loads(data)
    except ValueError:
        raise Broken("not JSON") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise Broken(f"not a list of peers of version {VERSION}")
    entries: dict[ID, _Entry] = {}
    broken = 0
    for item in _list(found.get("peers"), PEERS_MAX):
        try:
            peer, entry = _entry(item)
        except Broken:
            broken += 1
        else:
            entries[peer] = entry
    return entries, broken


def _entry(item: object) -> tuple[ID, _Entry]:
    if not isinstance(item, dict):
        raise Broken("a peer that is no object")
    peer_id, seen_s = item.get("peer_id"), item.get("seen_s")
    if not isinstance(seen_s, int) or not 0 <= seen_s < SEEN_S_MAX:
        raise Broken("a time that is none")
    addresses = [_text(address) for address in _list(item.get("addresses"), ADDRESSES_MAX)]
    try:
        peer = ID.from_base58(_text(peer_id))
        parsed = [Multiaddr(address) for address in addresses]
    except Broken:
        raise
    except Exception as error:  # multiaddr raises a dozen kinds
        raise Broken("a peer id or an address that is none") from error
    if not peer.to_bytes():
        raise Broken("a peer id that is none")
    return peer, _Entry(seen_s, announced=[address for address in parsed if is_dialable(address)])


def _list(found: object, count_max: int) -> Sequence[object]:
    if not isinstance(found, list) or len(found) > count_max:
        raise Broken("a list that is none, or too long")
    return found


def _text(found: object) -> str:
    if not isinstance(found, str) or len(found) > ADDRESS_CHARS_MAX:
        raise Broken("a text that is none, or too long")
    return found
