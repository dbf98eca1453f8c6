"""Finding peers, and finding them again."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from multiaddr import Multiaddr

from net.hostile.attacker import Identity
from net.loopback import network, networks, peer_of
from p2pdfl.net import Limits

pytestmark = [pytest.mark.net, pytest.mark.slow]

PATIENT = Limits(redial_s=0.1, redial_s_max=0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_peer_that_starts_before_its_bootstrap_connects_when_that_starts() -> None:
    async with network("bootstrap") as earlier:
        peer_id = earlier.peer_id.decode()
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with network("early", [f"{address}/p2p/{peer_id}"], limits=PATIENT) as early:
        with trio.fail_after(5):
            while early.counters["dials failed"] < 2:
                await trio.lowlevel.checkpoint()
        async with network("bootstrap", listen=address):
            with trio.fail_after(5):
                await early.wait_connected(1)


async def test_a_lost_peer_is_dialled_again() -> None:
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with network("first", listen=address) as first:
        bootstrap = first.addresses
        async with network("other", bootstrap, limits=PATIENT) as other:
            with trio.fail_after(5):
                await other.wait_connected(1)
    async with network("other", bootstrap, limits=PATIENT) as other:
        for _ in range(2):
            async with network("first", listen=address):
                with trio.fail_after(5):
                    await other.wait_connected(1)
            with trio.fail_after(5):
                while other.connected():
                    await trio.lowlevel.checkpoint()


async def test_who_joins_late_is_connected_to_everyone() -> None:
    async with networks(4) as peers, network("late", peers[0].addresses) as late:
        with trio.fail_after(10):
            await late.wait_connected(4)
            for peer in peers:
                await peer.wait_connected(4)


async def test_one_unreachable_bootstrap_of_two_is_no_obstacle() -> None:
    async with network("first") as first:
        nobody = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{first.peer_id.decode()}"
        async with network("second", [nobody, *first.addresses]) as second:
            with trio.fail_after(5):
                await second.wait_connected(1)


async def test_jitter_comes_from_the_entropy_given() -> None:
    drawn: list[int] = []

    def entropy(count: int) -> bytes:
        drawn.append(count)
        return bytes(count)

    async with networks(2, entropy=entropy):
        assert drawn


async def test_a_restart_with_every_bootstrap_gone_finds_the_network_again(tmp_path: Path) -> None:
    address_book = tmp_path / "peers.json"
    async with network("first") as first:
        async with network("bootstrap") as gone, network("second", gone.addresses):
            first.dial(gone.addresses[0])
            async with network("third", gone.addresses, address_book=address_book) as third:
                with trio.fail_after(20):
                    await third.wait_connected(3)
        async with network("third", gone.addresses, address_book=address_book) as third:
            with trio.fail_after(20):
                await third.wait_connected(1)
            assert third.connected() == {first.peer_id}


async def test_two_halves_that_formed_apart_become_one_over_one_link() -> None:
    async with networks(4, prefix="left") as left, networks(4, prefix="right") as right:
        begun = trio.current_time()
        left[1].dial(right[2].addresses[0])
        with trio.fail_after(60):
            for peer in [*left, *right]:
                await peer.wait_connected(7)
        print(f"one network after {trio.current_time() - begun:.1f} s")


async def test_members_of_two_halves_that_know_whom_they_miss_become_one_over_one_link() -> None:
    async with networks(4, prefix="left") as left, networks(4, prefix="right") as right:
        members = [peer.peer_id for peer in [*left, *right]]
        for peer in [*left, *right]:
            peer.admit(members)
        left[1].dial(right[2].addresses[0])
        with trio.fail_after(60):
            for peer in [*left, *right]:
                await peer.wait_connected(7)


async def test_a_member_whose_first_address_answers_nothing_is_reached_at_its_second() -> None:
    limits = Limits(dial_s=0.5, redial_s=0.1, redial_s_max=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = Multiaddr(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}")
        async with network("member") as member, network("victim", limits=limits) as victim:
            named = [dead, Multiaddr(member.addresses[0])]
            victim._host.get_peerstore().add_addrs(peer_of(member), named, 60)
            victim.admit([victim.peer_id, member.peer_id])
            with trio.fail_after(10):
                await victim.wait_connected(1)


async def test_once_the_members_are_known_nobody_else_takes_a_members_place() -> None:
    async with networks(2, limits=Limits(known_peers_max=4)) as (victim, friend):
        known, discovery = victim._host.get_peerstore(), victim._discovery
        member, *phantoms = [Identity(f"named {number}").id for number in range(20)]
        for peer in [*phantoms, member]:
            known.add_addrs(peer, [Multiaddr("/ip4/192.0.2.1/tcp/1")], 60)
        for peer in phantoms[:10]:
            await discovery.meet(peer)
        victim.admit([victim.peer_id, friend.peer_id, member.to_base58().encode()])
        for peer in [*phantoms, member]:
            await discovery.meet(peer)
        assert set(discovery._found) == {peer_of(friend), member}


async def test_a_remembered_peer_that_is_away_makes_no_room_for_names(tmp_path: Path) -> None:
    address_book = tmp_path / "peers.json"
    async with network("away") as away, network("victim", away.addresses, address_book=address_book) as victim:
        with trio.fail_after(5):
            await victim.wait_connected(1)
    limits = Limits(known_peers_max=4, redial_s=0.1, redial_s_max=0.2)
    async with network("victim", limits=limits, address_book=address_book) as victim:
        with trio.fail_after(5):
            while not victim.counters["dials failed"]:
                await trio.lowlevel.checkpoint()
        for number in range(20):
            phantom = Identity(f"named {number}").id
            victim._host.get_peerstore().add_addrs(phantom, [Multiaddr("/ip4/127.0.0.1/tcp/1")], 60)
            await victim._discovery.meet(phantom)
        assert peer_of(away) in victim._discovery._found
