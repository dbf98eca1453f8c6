"""The client against the embedded node, with the package's own signatures, heads and payloads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

from p2pdfl.base import codec, params
from p2pdfl.base.task import Deployment, Task, TaskFile, save
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Ballot,
    Certificate,
    Close,
    Envelope,
    EquivocationEntry,
    EquivocationProof,
    Head,
    Judge,
    Kind,
    Outcome,
    VerdictEntry,
    VerdictProof,
)
from p2pdfl.chain import contract
from p2pdfl.chain.client import ChainClient, WrongContract, deploy, fund
from p2pdfl.chain.devchain import DEPLOYER_SECRET, DevChain, devchain
from p2pdfl.chain.rpc import ChainError, Refused, Reverted
from p2pdfl.crypto.envelope import Signer, head_digest, list_hash, possession_digest
from p2pdfl.crypto.keys import Keys, derive

from .world import TASK

pytestmark = pytest.mark.net

KEYS = sorted((derive(sha256(b"client test %d" % i).digest()) for i in range(5)), key=lambda keys: keys.address)
MEMBERS = [keys.address for keys in KEYS[:4]]
TASK_ID = TASK.task_id()


@dataclass
class Network:
    chain: DevChain
    deployment: Deployment
    clients: list[ChainClient]

    def register(self, count: int) -> None:
        for keys, client in zip(KEYS[:count], self.clients, strict=False):
            client.register(peer_id(keys), keys.pvss_key, possession(keys, client))


def peer_id(keys: Keys) -> bytes:
    return b"peer " + keys.address.hex().encode()


def possession(keys: Keys, client: ChainClient) -> bytes:
    digest = possession_digest(client.domain, TASK_ID, keys.address, peer_id(keys))
    return Signer(keys.pvss_secret).sign_digest(digest)


@pytest.fixture(scope="module")
def _network() -> Iterator[Network]:
    with devchain(block_s=0) as chain:
        deployment = deploy(chain.url, DEPLOYER_SECRET, TASK)
        for keys in KEYS:
            fund(chain.url, keys.address, 10**18)
        clients = [ChainClient(deployment, TASK, keys.chain_secret) for keys in KEYS]
        yield Network(chain, deployment, clients)
        for client in clients:
            client.close()


@pytest.fixture
def network(_network: Network) -> Iterator[Network]:
    """Deployed and funded; nobody has registered."""
    snapshot = _network.chain.request("evm_snapshot")
    yield _network
    assert _network.chain.request("evm_revert", snapshot)


@pytest.fixture
def started(network: Network) -> Network:
    """KEYS[:4] are epoch 0's members."""
    network.register(4)
    network.clients[0].start(MEMBERS)
    return network


def ballots(client: ChainClient, signers: Sequence[int], **words: Any) -> tuple[Ballot, ...]:
    envelope = Envelope(task=TASK_ID, **words)
    return tuple(
        Ballot(member=i, signature=Signer(KEYS[i].chain_secret).sign(client.domain, envelope)) for i in signers
    )


def certified(client: ChainClient, epoch: int, signers: Sequence[int] = range(4)) -> tuple[Head, Certificate]:
    """The epoch's last head, with an unchanging member list."""
    head = Head(
        task=TASK_ID,
        epoch=epoch,
        round=TASK.last_round_of(epoch),
        parent=bytes([1]) * 32,
        contents=bytes([2]) * 32,
        state=bytes([3]) * 32,
        next_members=list_hash(MEMBERS),
        chain_block=bytes([4]) * 32,
    )
    words = {"epoch": head.epoch, "round": head.round, "view": 2, "kind": int(Kind.CLOSE)}
    body = codec.body_digest(Close(head=head_digest(head)))
    votes = ballots(client, signers, **words, body=body)
    return head, Certificate(**words, head=head_digest(head), ballots=votes)


def verdict(client: ChainClient, jurors: Sequence[int], outcome: Outcome = Outcome.GUILTY) -> VerdictProof:
    entry = VerdictEntry(epoch=0, round=3, accused=0, accuser=1, audited_round=1, outcome=outcome)
    body = codec.body_digest(Judge(accused=0, accuser=1, audited_round=1, outcome=outcome))
    return VerdictProof(
        entry=entry, ballots=ballots(client, jurors, epoch=0, round=3, view=1, kind=int(Kind.JUDGE), body=body)
    )


def equivocation(client: ChainClient, member: int) -> EquivocationProof:
    words = {"epoch": 0, "round": 2, "view": 1, "kind": int(Kind.NOTARIZE)}
    low, high = bytes([5]) * 32, bytes([6]) * 32
    signatures = [ballots(client, [member], **words, body=body)[0].signature for body in (low, high)]
    entry = EquivocationEntry(member=member, **words, body_low=low, body_high=high)
    return EquivocationProof(entry=entry, signature_low=signatures[0], signature_high=signatures[1])


# --- deployment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain_id": 5}, "is chain"),
        ({"contract": bytes([9]) * 20}, "no contract at"),
    ],
)
def test_client__refuses__another_deployment(network: Network, change: dict[str, object], words: str) -> None:
    with pytest.raises(WrongContract, match=words):
        ChainClient(network.deployment.model_copy(update=change), TASK)


@pytest.mark.parametrize("change", [{"name": "other"}, {"cooldown_blocks": 1}])
def test_client__refuses__another_task(network: Network, change: dict[str, object]) -> None:
    with pytest.raises(WrongContract, match="another task or other rules"):
        ChainClient(network.deployment, TASK.model_copy(update=change))


def test_client__refuses__other_code(network: Network) -> None:
    # returns 32 zero bytes to whatever is asked
    code = "0x" + "600a600c600039600a6000f3" + "602060006000f3000000"
    sender = network.chain.request("eth_accounts")[0]
    transaction = network.chain.request("eth_sendTransaction", {"from": sender, "data": code})
    address = network.chain.request("eth_getTransactionReceipt", transaction)["contractAddress"]
    other = network.deployment.model_copy(update={"contract": bytes.fromhex(address[2:])})
    with pytest.raises(WrongContract, match="not this version"):
        ChainClient(other, TASK)


def test_client_without_a_key_only_looks(network: Network) -> None:
    client = ChainClient(network.deployment, TASK)
    assert client.registrations() == []
    with pytest.raises(ChainError, match="no key"):
        client.request_exit()
    client.close()


def test_sending__refused__without_funds(network: Network) -> None:
    poor = derive(bytes(32))
    client = ChainClient(network.deployment, TASK, poor.chain_secret)
    with pytest.raises(Refused):
        client.register(peer_id(poor), poor.pvss_key, possession(poor, client))
    client.close()


# --- membership --------------------------------------------------------------------------------------------------


def test_registrations_ascend_and_are_seen_as_of_a_block(network: Network) -> None:
    client = network.clients[0]
    before = client.block()
    for keys, own in reversed(list(zip(KEYS, network.clients, strict=True))):
        own.register(peer_id(keys), keys.pvss_key, possession(keys, own))
    found = client.registrations()
    assert [entry.address for entry in found] == [keys.address for keys in KEYS]
    assert [entry.pvss_key for entry in found] == [keys.pvss_key for keys in KEYS]
    assert [entry.peer_id for entry in found] == [peer_id(keys) for keys in KEYS]
    assert client.registrations(before.number) == client.registrations(before.hash) == []
    assert client.deposit_of(KEYS[0].address) == TASK.deposit_wei


def test_registering_twice_reverts(network: Network) -> None:
    network.register(1)
    with pytest.raises(Reverted) as caught:
        network.register(1)
    assert caught.value.reason == "already registered"


def test_who_exits_or_was_slashed_shows_as_exiting(started: Network) -> None:
    client = started.clients[0]
    started.clients[1].request_exit()
    client.slash_by_equivocation(equivocation(client, 2), MEMBERS[2])
    assert [entry.exiting for entry in client.registrations()] == [False, True, True, False]


def test_start_block_is_the_one_that_closed_registration(network: Network) -> None:
    network.register(4)
    client = network.clients[2]
    assert not client.is_started()
    assert client.start_block() is None
    receipt = client.start(MEMBERS[::-1])
    assert client.is_started()
    assert client.start_block() == client.block(receipt.block)
    assert client.list_hash(0) == list_hash(MEMBERS)
    assert client.list_hash(1) is None


# --- blocks ------------------------------------------------------------------------------------------------------


def test_confirmed_block_lags_by_the_tasks_confirmations(network: Network) -> None:
    client = network.clients[0]
    network.chain.request("evm_mine")
    assert client.confirmed_block() == client.block(client.block().number - TASK.confirmations)


def test_a_block_is_known_by_its_hash_while_it_is_on_the_chain(network: Network) -> None:
    client = network.clients[0]
    snapshot = network.chain.request("evm_snapshot")
    network.chain.request("evm_mine")
    lost = client.block()
    assert client.block_of(lost.hash) == lost
    network.chain.request("evm_revert", snapshot)
    network.chain.request("evm_mine")
    assert client.block().number == lost.number
    assert client.block_of(lost.hash) is None
    assert client.block_of(ZERO_DIGEST) is None
    with pytest.raises(ChainError, match="no block"):
        client.block(lost.number + 1)


# --- anchors and slashing ----------------------------------------------------------------------------------------


def test_anchor_takes_a_certificate(started: Network) -> None:
    client = started.clients[3]
    head, certificate = certified(client, 0)
    receipt = client.anchor(head=head, certificate=certificate, members=MEMBERS, next_members=MEMBERS)
    assert client.anchored_head(0) == head_digest(head)
    assert client.anchored_head(0, receipt.block - 1) is None
    (event,) = client.events(receipt.block)
    assert event == contract.Anchored(
        tx=receipt.tx,
        block=receipt.block,
        epoch=0,
        round=3,
        head=head_digest(head),
        view=2,
        bitmap=0b0111,  # the quorum only
        sender=KEYS[3].address,
    )
    with pytest.raises(Reverted, match="not the next epoch"):
        client.anchor(head=head, certificate=certificate, members=MEMBERS, next_members=MEMBERS)


def test_anchor_below_quorum_reverts(started: Network) -> None:
    head, certificate = certified(started.clients[0], 0, [1, 3])
    with pytest.raises(Reverted, match="no quorum"):
        started.clients[0].anchor(head=head, certificate=certificate, members=MEMBERS, next_members=MEMBERS)


@pytest.mark.parametrize(("outcome", "loser"), [(Outcome.GUILTY, 0), (Outcome.FALSE, 1)])
def test_verdict_is_slashed_once(started: Network, outcome: Outcome, loser: int) -> None:
    client = started.clients[2]
    proof = verdict(client, [2, 3], outcome)
    assert not client.is_slashed_by_verdict(proof, MEMBERS)
    receipt = client.slash_by_verdict(proof, MEMBERS)
    assert client.is_slashed_by_verdict(proof, MEMBERS)
    assert client.events(receipt.block) == [
        contract.Slashed(
            tx=receipt.tx,
            block=receipt.block,
            address=MEMBERS[loser],
            amount_wei=TASK.verdict_slash_wei,
            evidence=outcome,
            round=1,
            sender=KEYS[2].address,
        )
    ]
    with pytest.raises(Reverted, match="already slashed"):
        started.clients[3].slash_by_verdict(proof, MEMBERS)


def test_equivocation_is_slashed_once(started: Network) -> None:
    client = started.clients[0]
    proof = equivocation(client, 2)
    assert not client.is_slashed_by_equivocation(proof, MEMBERS[2])
    client.slash_by_equivocation(proof, MEMBERS[2])
    assert client.is_slashed_by_equivocation(proof, MEMBERS[2])
    assert client.deposit_of(MEMBERS[2]) == TASK.deposit_wei - TASK.equivocation_slash_wei
    with pytest.raises(Reverted, match="already slashed"):
        started.clients[1].slash_by_equivocation(proof, MEMBERS[2])


def test_money_comes_back(started: Network) -> None:
    client = started.clients[0]
    client.slash_by_equivocation(equivocation(client, 2), MEMBERS[2])
    assert client.claimable_of(client.address) == TASK.equivocation_slash_wei * params.REPORTER_SHARE_BPS // 10_000
    client.claim()
    assert client.claimable_of(client.address) == 0
    client.request_exit()
    with pytest.raises(Reverted, match="audits pending"):
        client.withdraw()
    started.chain.request("evm_mine", hex(TASK.stall_blocks))
    client.withdraw()
    assert client.deposit_of(client.address) == 0
    kinds = [type(event) for event in client.events(0)]
    assert kinds[-4:] == [contract.Slashed, contract.Claimed, contract.ExitRequested, contract.Withdrawn]


def test_events_of_a_range_are_in_order(started: Network) -> None:
    client = started.clients[0]
    found = client.events(0)
    assert [type(event) for event in found] == [contract.Registered] * 4 + [contract.Started]
    assert [event.address for event in found[:4]] == MEMBERS  # type: ignore[union-attr]
    assert client.events(found[1].block, found[2].block) == found[1:3]
    assert client.events(client.block().number + 1) == []


def test_the_registry_of_any_block_follows_from_the_events(started: Network) -> None:
    client = started.clients[0]
    client.slash_by_equivocation(equivocation(client, 2), MEMBERS[2])
    client.request_exit()
    events = client.events(0)
    for block in range(events[0].block, client.block().number + 1):
        assert contract.registrations_at(events, block, TASK.deposit_wei) == client.registrations(block)


def test_registration_closes_with_a_member_that_was_slashed_before(network: Network) -> None:
    """Else one deposit would keep a task from starting, or part the members' first list from the contract's."""
    network.register(4)
    client = network.clients[0]
    client.slash_by_equivocation(equivocation(client, 2), MEMBERS[2])
    assert client.candidates() == MEMBERS
    client.start(client.candidates())
    block = client.start_block()
    assert block is not None
    client.slash_by_equivocation(equivocation(client, 1), MEMBERS[1])
    found = client.started_with(block)
    assert found == contract.started_with(client.events(0))
    assert list_hash(entry.address for entry in found if not entry.exiting) == client.list_hash(0)
    assert [entry.exiting for entry in client.registrations()] == [False, True, True, False]


def test_who_leaves_before_the_start_is_no_candidate(network: Network) -> None:
    network.register(5)
    client = network.clients[4]
    client.request_exit()
    assert client.candidates() == MEMBERS
    client.start(client.candidates())
    block = client.start_block()
    assert block is not None
    assert [entry.address for entry in client.started_with(block) if entry.exiting] == [client.address]


def test_what_comes_after_the_start_in_its_block_leaves_the_first_list_as_it_is() -> None:
    mined: dict[str, Any] = {"tx": ZERO_DIGEST, "block": 7}
    early, other, late = (keys.address for keys in KEYS[:3])
    registered = [
        contract.Registered(**mined, address=address, peer_id=b"id", pvss_key=bytes(33), deposit_wei=1)
        for address in (early, other, late)
    ]
    events: list[contract.Event] = [
        registered[1],
        contract.Started(**mined, list_hash=ZERO_DIGEST),
        registered[2],
        contract.ExitRequested(**mined, address=early),
        contract.Slashed(**mined, address=other, amount_wei=1, evidence=5, round=0, sender=late),
    ]
    (before,) = contract.registrations_at(registered[:1], 7, deposit_wei=0)
    assert contract.started_with(events, [before]) == contract.registrations_at(registered[:2], 7, deposit_wei=0)


# --- one chain, many senders -------------------------------------------------------------------------------------


def test_threads_may_share_a_client(network: Network) -> None:
    network.register(4)
    client = network.clients[0]
    calls: list[Callable[[], object]] = [
        client.registrations,
        client.block,
        client.is_started,
        lambda: client.start(MEMBERS),
        client.request_exit,
    ]
    with ThreadPoolExecutor(5) as pool:
        results = [pool.submit(call) for call in calls]
    errors = [result.exception() for result in results if result.exception()]
    # start and exit race: whichever comes first, start may find its list outdated, and nothing else may fail
    assert all(isinstance(error, Reverted) and error.reason == "incomplete list" for error in errors)
    assert client.registrations()[0].exiting


@pytest.mark.slow
def test_two_clients_with_one_key_do_not_trip_over_its_nonce(network: Network) -> None:
    twin = ChainClient(network.deployment, TASK, KEYS[0].chain_secret)
    senders = [network.clients[0]._own, twin._own]
    before = twin.balance_of(KEYS[1].address)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda wei: senders[wei % 2].send(KEYS[1].address, b"", wei), range(8)))
    assert twin.balance_of(KEYS[1].address) == before + sum(range(8))
    twin.close()


_REGISTER = """
import sys
from pathlib import Path
from p2pdfl.chain.client import ChainClient, fund
from p2pdfl.crypto.envelope import Signer, possession_digest
from p2pdfl.crypto.keys import derive
from p2pdfl.base.task import load
file = load(Path(sys.argv[1]))
keys = derive(bytes.fromhex(sys.argv[2]))
fund(file.chain.rpc, keys.address, 10**18)
client = ChainClient(file.chain, file.task, keys.chain_secret)
name = keys.address.hex().encode()
proof = Signer(keys.pvss_secret).sign_digest(possession_digest(client.domain, file.task.task_id(), keys.address, name))
print(client.register(name, keys.pvss_key, proof).block)
"""


@pytest.mark.slow
def test_processes_share_one_chain(network: Network, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("task") / "task.toml"
    save(path, TaskFile(task=TASK, chain=network.deployment))
    seeds = [sha256(b"process %d" % i).hexdigest() for i in range(3)]
    processes = [
        subprocess.Popen([sys.executable, "-c", _REGISTER, path, seed], stdout=subprocess.PIPE, text=True)
        for seed in seeds
    ]
    blocks = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert len(set(blocks)) == 3
    expected = sorted(derive(bytes.fromhex(seed)).address for seed in seeds)
    assert [entry.address for entry in network.clients[0].registrations()] == expected


def test_every_task_gets_its_own_contract(network: Network) -> None:
    other_task: Task = TASK.model_copy(update={"name": "other"})
    other = deploy(network.chain.url, DEPLOYER_SECRET, other_task)
    assert other.contract != network.deployment.contract
    client = ChainClient(other, other_task)
    network.register(1)
    assert client.registrations() == []
    client.close()
