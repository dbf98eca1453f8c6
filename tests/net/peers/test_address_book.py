"""The file of remembered peers: bounded, and of each peer only what would be written is believed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from net.loopback import seed
from p2pdfl.net.peers.address_book import ADDRESSES_MAX, FILE_BYTES_MAX, PEERS_MAX, AddressBook


def peer(number: int) -> ID:
    return ID.from_pubkey(create_new_key_pair(seed(str(number))).public_key)


def address(port: int) -> Multiaddr:
    return Multiaddr(f"/ip4/192.0.2.1/tcp/{port}")


async def test_who_is_remembered_is_read_back_and_what_worked_comes_first(tmp_path: Path) -> None:
    memory = AddressBook(tmp_path / "peers.json", Counter())
    memory.announced(peer(1), [address(1), address(2)])
    memory.worked(peer(1), address(3))
    assert memory.is_worth_writing
    await memory.write()
    assert not memory.is_worth_writing
    assert AddressBook(tmp_path / "peers.json", Counter()).peers() == {peer(1): [address(3), address(1), address(2)]}


async def test_the_file_is_bounded(tmp_path: Path) -> None:
    memory = AddressBook(tmp_path / "peers.json", Counter())
    for number in range(PEERS_MAX + 5):
        memory.announced(peer(number), [address(port) for port in range(1, 20)])
    await memory.write()
    again = AddressBook(tmp_path / "peers.json", Counter()).peers()
    assert len(again) == PEERS_MAX
    assert peer(PEERS_MAX + 4) in again
    assert all(len(addresses) == ADDRESSES_MAX for addresses in again.values())


async def test_the_longest_names_in_any_script_are_read_back(tmp_path: Path) -> None:
    name = ".".join(["\u00e9" * 10] * 5)
    longest = [Multiaddr(f"/dns4/{name}/tcp/{port}") for port in range(60_000, 60_000 + ADDRESSES_MAX)]
    memory = AddressBook(tmp_path / "peers.json", Counter())
    for number in range(PEERS_MAX):
        memory.announced(peer(number), longest)
    await memory.write()
    assert AddressBook(tmp_path / "peers.json", Counter()).peers() == memory.peers()


async def test_whoever_is_no_member_is_forgotten(tmp_path: Path) -> None:
    memory = AddressBook(tmp_path / "peers.json", Counter())
    memory.worked(peer(1), address(1))
    memory.worked(peer(2), address(2))
    memory.keep_only({peer(2)})
    assert memory.peers() == {peer(2): [address(2)]}


def entry(number: int = 1, **fields: object) -> dict[str, object]:
    whole = {"peer_id": peer(number).to_base58(), "seen_s": 1, "addresses": [f"/ip4/192.0.2.1/tcp/{number}"]}
    return whole | fields


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b'{"version": 2, "peers": []}',
        b'{"version": 1}',
        b'{"version": 1, "peers": [' + b",".join([b"{}"] * (PEERS_MAX + 1)) + b"]}",
        b" " * (FILE_BYTES_MAX + 1),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_a_broken_file_is_set_aside_with_a_warning(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert AddressBook(path, Counter()).peers() == {}
    assert "it is set aside" in caplog.text
    assert not path.exists()
    assert (tmp_path / "peers.json.broken").read_bytes() == data


@pytest.mark.parametrize(
    "broken",
    [
        1,
        {},
        entry(peer_id=""),
        entry(peer_id=1),
        entry(peer_id="0OIl"),
        entry(seen_s="now"),
        entry(seen_s=-1),
        entry(seen_s=2**60),
        entry(addresses="/ip4/192.0.2.1/tcp/1"),
        entry(addresses=["nonsense"]),
        entry(addresses=["/ip4/192.0.2.1/tcp/1"] * (ADDRESSES_MAX + 1)),
        entry(addresses=["/dns4/" + "a" * 1000 + "/tcp/1"]),
    ],
    ids=lambda broken: repr(broken)[:60],
)
def test_a_broken_peer_is_left_out_and_counted_and_the_others_are_kept(
    broken: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, counters = tmp_path / "peers.json", Counter[str]()
    path.write_text(json.dumps({"version": 1, "peers": [entry(2), broken, entry(3)]}))
    with caplog.at_level(logging.WARNING):
        found = AddressBook(path, counters).peers()
    assert found == {peer(2): [address(2)], peer(3): [address(3)]}
    assert counters == {"remembered peers unreadable": 1}
    assert "left out" in caplog.text
    assert path.exists()


async def test_a_disk_that_takes_nothing_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = AddressBook(tmp_path / "missing" / "peers.json", Counter())
    memory.worked(peer(1), address(1))
    await memory.write()
    assert "not remembered" in caplog.text
