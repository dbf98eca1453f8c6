"""Each diagnosis against a real fault on loopback."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr
from net.loopback import seed
from node.nodes import Place, keys_of, measured, place
from test_peer import Peer

from p2pdfl import cli
from p2pdfl.base import task
from p2pdfl.base.task import Task, TaskFile
from p2pdfl.doctor.examination import Options, examine
from p2pdfl.doctor.finding import Finding, Level
from p2pdfl.net import Network, open_network
from p2pdfl.net.libp2p import adapter

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.long]

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


class Seen(list[Finding]):
    def of(self, subject: str) -> Finding:
        found = [finding for finding in self if finding.subject.startswith(subject)]
        assert len(found) == 1, [*self]
        return found[0]


async def seen(**options: Any) -> Seen:
    found = Seen()
    await examine(Options(**options), found.append)
    return found


def assert_found(finding: Finding, level: Level, text: str, advice: str = "") -> None:
    assert (finding.level, text in finding.text, advice in finding.advice) == (level, True, True), finding
    assert bool(finding.advice) == (level != Level.OK)


def topic(of: Task) -> str:
    return f"/p2pdfl/2/{of.task_id().hex()}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, measured(members_min=2)) as published:
        task.save(tmp_path / "task.toml", TaskFile(task=published.task, chain=published.deployment))
        yield published


@pytest.fixture
def http_port() -> Iterator[int]:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def peer_network(name: str, of: Task, **options: Any) -> Any:
    fields = {"listen": [LOOPBACK], "bootstrap": [], "topic": topic(of)} | options
    return open_network(key_seed=seed(name), **fields)


# --- this machine ------------------------------------------------------------------------------------------------


async def test_a_sound_installation() -> None:
    found = await seen(listen=["/ip4/127.0.0.1/tcp/0"])
    assert_found(found.of("installation"), Level.OK, "py-libp2p 0.8.1")


async def test_too_few_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        found = await seen(listen=["/ip4/127.0.0.1/tcp/0"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert_found(found.of("open files"), Level.WARNING, "may open 256", "ulimit -n")


async def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    assert_found((await seen(home=tmp_path / "nowhere")).of("home"), Level.FAILED, "no such directory", "--home")


async def test_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert_found((await seen(home=tmp_path)).of("key"), Level.WARNING, "none yet", "first starts")
    key.write_text("00" * 32)
    key.chmod(0o644)
    assert_found((await seen(home=tmp_path)).of("key"), Level.FAILED, "others can read it", f"chmod 600 {key}")
    key.chmod(0o600)
    assert_found((await seen(home=tmp_path)).of("key"), Level.OK, "yours alone")
    key.rename(tmp_path / "real")
    key.symlink_to(tmp_path / "real")
    assert_found((await seen(home=tmp_path)).of("key"), Level.FAILED, "is not a regular file", "link")


async def test_a_home_full_of_nonsense(tmp_path: Path) -> None:
    (tmp_path / "address.json").write_text('{"peer_id": 7, "addresses": "x", "listening": [1], "address": "0xzz"}')
    (tmp_path / "status.json").write_text('{"pid": "me", "connected": 3}')
    (tmp_path / "events.jsonl").write_bytes(b"\xff\x00{]\n[1]\n")
    assert_found((await seen(home=tmp_path)).of("peer"), Level.WARNING, "none runs in this home", "p2pdfl peer")
    (tmp_path / "status.json").write_text(json.dumps({"pid": os.getpid(), "connected": 3, "counters": [1]}))
    assert_found((await seen(home=tmp_path)).of("peer"), Level.FAILED, "connected to nobody", "what follows")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file"),
        ("task =", "not readable as TOML"),
        ("[task]\ncolour = 1\n", "colour"),
        ("[task]\n", "not published"),
    ],
)
async def test_a_task_file_that_is_none(tmp_path: Path, content: str | None, text: str) -> None:
    if content is not None:
        (tmp_path / "task.toml").write_text(content)
    assert_found((await seen(task=tmp_path / "task.toml")).of("task"), Level.FAILED, text, "publish")


# --- addresses to listen on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "level", "text", "advice"),
    [
        ("nonsense", Level.FAILED, "is not a multiaddr", "IP address of this machine"),
        ("/ip4/203.0.113.7/tcp/9000", Level.FAILED, "not an address of this machine", "/ip4/0.0.0.0/tcp/9000"),
        ("/ip4/127.0.0.1/tcp/0", Level.WARNING, "only this machine can dial it", "--listen /ip4/0.0.0.0/tcp/9000"),
        ("/ip4/0.0.0.0/tcp/0", Level.WARNING, "another port at each start", "name a port"),
        ("/dns4/localhost/tcp/9000", Level.FAILED, "names a host", "IP address"),
    ],
)
async def test_where_to_listen(address: str, level: Level, text: str, advice: str) -> None:
    assert_found((await seen(listen=[address])).of("listen"), level, text, advice)


async def test_a_port_that_is_free() -> None:
    assert_found((await seen(listen=[f"/ip4/0.0.0.0/tcp/{free_port()}"])).of("listen"), Level.OK, "free")


async def test_a_port_in_use_by_another_program(http_port: int) -> None:
    found = await seen(listen=[f"/ip4/127.0.0.1/tcp/{http_port}"])
    assert_found(found.of("listen"), Level.FAILED, "in use, by another program", "another port")


async def test_a_port_in_use_by_another_peer() -> None:
    async with peer_network("other", measured()) as other:
        found = await seen(listen=[other.listening[0].rpartition("/p2p/")[0] or other.listening[0]])
        assert_found(found.of("listen"), Level.FAILED, f"in use, by peer {other.peer_id.decode()}", "another port")


# --- the chain -----------------------------------------------------------------------------------------------------


async def test_a_chain_that_is_down(at: Place, tmp_path: Path) -> None:
    elsewhere = at.deployment.model_copy(update={"rpc": f"http://127.0.0.1:{free_port()}"})
    task.save(tmp_path / "task.toml", TaskFile(task=at.task, chain=elsewhere))
    assert_found((await seen(task=tmp_path / "task.toml")).of("chain"), Level.FAILED, "Connection refused", "rpc")


async def test_a_web_server_in_the_chains_place(at: Place, tmp_path: Path, http_port: int) -> None:
    elsewhere = at.deployment.model_copy(update={"rpc": f"http://127.0.0.1:{http_port}"})
    task.save(tmp_path / "task.toml", TaskFile(task=at.task, chain=elsewhere))
    assert_found((await seen(task=tmp_path / "task.toml")).of("chain"), Level.FAILED, "no usable answer", "rpc")


@pytest.mark.parametrize(
    ("changes", "text"), [({"contract": bytes(20)}, "no contract at"), ({"chain_id": 7}, "the task is on 7")]
)
async def test_the_wrong_chain(at: Place, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    task.save(tmp_path / "task.toml", TaskFile(task=at.task, chain=at.deployment.model_copy(update=changes)))
    assert_found((await seen(task=tmp_path / "task.toml")).of("chain"), Level.FAILED, text, "against the publisher's")


async def test_membership_from_no_money_to_exit(at: Place, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "address.json").write_text(json.dumps({"address": "0x" + keys_of("me").address.hex()}))

    async def membership() -> Finding:
        return (await seen(task=tmp_path / "task.toml", home=home)).of("membership")

    assert_found(await membership(), Level.FAILED, "is not registered and has 0 ETH", "send 0x")
    at.register("me", b"12D3KooWBWrrD5VD6JxcU4rTxn2jUQQga6MW9G1NBubUtMAjYrxE")
    assert_found(await membership(), Level.OK, "is registered, with a deposit of 1 ETH")
    client = at.client("me")
    client.request_exit()
    client.close()
    assert_found(await membership(), Level.FAILED, "has asked to exit", "next epochs")


async def test_registration_that_closed_without_this_peer(at: Place, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "address.json").write_text(json.dumps({"address": "0x" + keys_of("late").address.hex()}))
    for name in ("one", "two"):
        at.register(name, secrets.token_hex(16).encode())
    at.start("one", "two")
    found = await seen(task=tmp_path / "task.toml", home=home)
    assert_found(found.of("registration"), Level.OK, "closed at block")
    assert_found(found.of("membership"), Level.WARNING, "closed without it", "registers late")


# --- others --------------------------------------------------------------------------------------------------------


async def test_a_bootstrap_that_is_none() -> None:
    found = await seen(bootstrap=["/ip4/127.0.0.1/tcp/9000"])
    assert_found(found.of("bootstrap"), Level.FAILED, "does not end in /p2p/", "copy the address")
    assert_found(found.of("network"), Level.FAILED, "no bootstrap address can be used", "see above")


async def test_a_bootstrap_that_nobody_listens_at() -> None:
    async with peer_network("gone", measured()) as gone:
        address = gone.addresses[0]
    assert_found((await seen(bootstrap=[address])).of("bootstrap"), Level.FAILED, "connection refused", "running")


async def test_a_bootstrap_with_an_unknown_name() -> None:
    async with peer_network("first", measured()) as first:
        address = f"/dns4/nowhere.invalid/tcp/9000/p2p/{first.peer_id.decode()}"
        found = await seen(bootstrap=[address])
        assert_found(found.of("bootstrap"), Level.FAILED, "the name has no address", "spelling")


async def test_a_bootstrap_where_a_web_server_answers(http_port: int) -> None:
    async with peer_network("first", measured()) as first:
        address = f"/ip4/127.0.0.1/tcp/{http_port}/p2p/{first.peer_id.decode()}"
        assert_found((await seen(bootstrap=[address])).of("bootstrap"), Level.FAILED, "no libp2p peer", "program")


async def test_a_bootstrap_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with peer_network("first", measured()) as first:
            address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{first.peer_id.decode()}"
        assert_found((await seen(bootstrap=[address])).of("bootstrap"), Level.FAILED, "timed out", "firewall")


async def test_a_bootstrap_with_the_wrong_peer_id() -> None:
    async with peer_network("old", measured()) as old:
        old_id = old.peer_id.decode()
    async with peer_network("new", measured()) as new:
        address = new.addresses[0].replace(new.peer_id.decode(), old_id)
        found = await seen(bootstrap=[address])
        text = f"another peer answers there: {new.peer_id.decode()}"
        assert_found(found.of("bootstrap"), Level.FAILED, text, "prints now")


async def test_a_bootstrap_of_another_task(at: Place, tmp_path: Path) -> None:
    async with peer_network("other", measured(name="other")) as other:
        found = await seen(task=tmp_path / "task.toml", bootstrap=other.addresses)
        assert_found(found.of("peer"), Level.FAILED, "does not follow this task", "compare the task files")


async def test_members_that_can_be_dialled_and_members_that_cannot(at: Place, tmp_path: Path) -> None:
    """The first is well; of the second others know an address that nobody listens on; the third never came."""
    dead = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with (
        peer_network("first", at.task) as first,
        peer_network("second", at.task, bootstrap=first.addresses, announce=[dead]) as second,
        peer_network("absent", at.task) as absent,
    ):
        await first.wait_connected(1)
        for name, peer in (("a", first), ("b", second), ("c", absent)):
            at.register(name, peer.peer_id)
        found = await seen(task=tmp_path / "task.toml", bootstrap=first.addresses)
        assert_found(found.of("peer"), Level.OK, "follows this task")
        assert_found(found.of("members"), Level.WARNING, "1 of 3 others can be dialled", "reasons follow")
        assert_found(member(found, second), Level.WARNING, f"{dead}: connection refused", "--announce")
        assert_found(member(found, absent), Level.WARNING, "no address known", "not running")


async def test_what_a_member_announces_and_nobody_here_can_dial_is_passed_over(at: Place, tmp_path: Path) -> None:
    """Who is asked names it as such a member signed it."""
    key = create_new_key_pair(seed("mixed"))
    mixed = ID.from_pubkey(key.public_key)
    tcp = Multiaddr(f"/ip4/127.0.0.1/tcp/{free_port()}")
    signed = [Multiaddr("/ip4/127.0.0.1/udp/1/quic-v1"), tcp, Multiaddr("/ip4/1.2.3.4"), Multiaddr(b"\xff\xff")]
    answer = Message(type=Message.FIND_NODE)
    named = answer.closerPeers.add(id=mixed.to_bytes())
    named.signedRecord = create_signed_peer_record(mixed, signed, key.private_key).marshal_envelope()

    async def say(stream: INetStream) -> None:
        await adapter.read_some(stream, 1 << 16)
        await stream.write(encode_varint_prefixed(answer.SerializeToString()))
        await stream.close()

    async with peer_network("first", at.task) as first:
        first._host.set_stream_handler(PROTOCOL_ID, say)
        for name, peer in (("a", first.peer_id), ("b", mixed.to_base58().encode())):
            at.register(name, peer)
        found = await seen(task=tmp_path / "task.toml", bootstrap=first.addresses)
        subject = f"member {mixed.to_base58()}"
        assert_found(found.of(subject), Level.WARNING, f"{tcp}: connection refused", "--announce")


async def test_a_member_behind_a_relay_and_one_whose_relay_is_gone(at: Place, tmp_path: Path) -> None:
    async with peer_network("first", at.task) as first:
        async with (
            peer_network("relay", at.task, relay=True, bootstrap=first.addresses) as relay,
            peer_network("hidden", at.task, listen=[], via=relay.addresses, bootstrap=first.addresses) as hidden,
        ):
            at.register("a", first.peer_id)
            at.register("b", hidden.peer_id)
            with trio.fail_after(10):
                await first.wait_connected(2)
            options = {"task": tmp_path / "task.toml", "bootstrap": [*first.addresses, *relay.addresses]}
            assert_found((await seen(**options)).of("members"), Level.OK, "2 of 2 others")
            found = await seen(task=tmp_path / "task.toml", bootstrap=hidden.addresses)
            assert_found(found.of("bootstrap"), Level.OK, "answers, with the right key")
        found = await seen(task=tmp_path / "task.toml", bootstrap=first.addresses)
        assert_found(member(found, hidden), Level.WARNING, "only through the relay", "that one runs")


def member(found: Seen, peer: Network) -> Finding:
    return found.of(f"member {peer.peer_id.decode()}")


async def test_own_reachability_when_nobody_follows_the_same_task() -> None:
    async with peer_network("first", measured()) as first:
        port = free_port()
        found = await seen(bootstrap=first.addresses, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
        assert_found(found.of("reachable"), Level.WARNING, "nobody could be asked", "start the peer")


async def test_own_reachability_is_asked_of_the_tasks_peers(at: Place, tmp_path: Path) -> None:
    async with peer_network("first", at.task) as first:
        options = {"task": tmp_path / "task.toml", "bootstrap": first.addresses}
        listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
        found = await seen(listen=[listen], **options)
        assert_found(found.of("reachable"), Level.OK, f"others reach this peer at {listen}")
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}"
        found = await seen(listen=[listen], announce=[dead], **options)
        assert_found(found.of("reachable"), Level.WARNING, f"{dead}: connection refused", "--announce")


async def test_beside_a_running_peer(tmp_path: Path) -> None:
    """It finds by the home alone what the peer was started with, and the peer goes on."""
    with (
        place(tmp_path, measured(members_min=2)) as at,
        Peer(tmp_path, TaskFile(task=at.task, chain=at.deployment)) as one,
    ):
        one.until("1 of 2 members registered")
        key = (one.home / "key").stat()
        found = await seen(home=one.home)
        assert not [finding for finding in found if finding.level == Level.FAILED], [*found]
        assert_found(found.of("peer"), Level.OK, f"process {one.process.pid} runs")
        assert_found(found.of("training"), Level.OK, "profile exact: float64 on the processor, 1 thread")
        assert_found(found.of("listen"), Level.OK, "this peer listens there")
        assert_found(found.of("membership"), Level.OK, "is registered")
        assert (one.home / "key").stat().st_atime_ns == key.st_atime_ns
        assert one.process.poll() is None
        one.end(signal.SIGTERM)
        assert not (one.home / "status.json").exists()
        assert_found((await seen(home=one.home)).of("peer"), Level.WARNING, "none runs", "start it")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_each_finding_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--bootstrap", "nonsense"]) == cli.EXIT_NOT_AS_EXPECTED
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ok       installation: ")
    assert any(line.startswith("failed   bootstrap nonsense: ") for line in said)
    assert said[-1] == "         -> one is enough: see above what to do"


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--listen", "/ip4/127.0.0.1/tcp/0", "--json"]) == cli.EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert {finding["level"] for finding in said["findings"]} <= {"ok", "warning"}
    assert {finding["subject"] for finding in said["findings"]} >= {"installation", "open files"}


def test_the_command_with_nothing_to_examine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("p2pdfl: doctor needs something to examine")
    assert error.count("\n") == 1


def test_what_a_peer_says_cannot_move_the_cursor() -> None:
    finding = Finding(subject="peer", level=Level.OK, text="a\x1b[2Jb\nc")
    assert finding.lines() == ["ok       peer: a [2Jb c"]


def test_its_help_needs_nothing_heavy() -> None:
    script = (
        "import sys; from p2pdfl import cli\n"
        "try: cli.main(['doctor', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'libp2p', 'web3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
