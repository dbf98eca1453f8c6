"""P2PDFL.vy on py-evm: every reason to revert, and what happens otherwise."""

from __future__ import annotations

from hashlib import sha256

import msgpack
import pytest

from p2pdfl.base import params
from p2pdfl.chain.contract import EVIDENCE_EQUIVOCATION, rules
from p2pdfl.chain.evm import RpcError

from .world import (
    CLOSE,
    FALSE,
    GUILTY,
    OBJECTIVE,
    PEERS,
    TASK,
    VOID,
    Peer,
    World,
    addresses,
    counted,
    head_digest,
    list_hash,
    replaced,
)

DEPOSIT = TASK.deposit_wei
MEMBERS = PEERS[:4]
EXITED = PEERS[4:6]
STRANGER = PEERS[9]
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
FIELD = 2**256 - 2**32 - 977
CLOSED_BODY = sha256(msgpack.packb([bytes(32)])).digest()


# --- deployment --------------------------------------------------------------------------------------------------


def test_rules_are_the_tasks(deployed: World) -> None:
    assert deployed.view("rules") == rules(TASK)


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (1, 0, "members_min"),
        (1, 257, "members_min"),
        (2, 0, "rounds"),
        (3, 0, "rounds"),
        (3, 9, "rounds"),
        (4, 2**32, "rounds"),
        (5, 2**32, "too long"),
        (7, DEPOSIT + 1, "slash exceeds deposit"),
        (8, DEPOSIT + 1, "slash exceeds deposit"),
        (9, 2**64, "too long"),
        (10, 2**64, "too long"),
    ],
)
def test_deployment__reverts(deployed: World, position: int, value: int, reason: str) -> None:
    arguments = list(rules(TASK))
    arguments[position] = value
    with pytest.raises(RpcError, match=reason):
        deployed.deploy_with(*arguments)


# --- registration ------------------------------------------------------------------------------------------------


def test_registration_is_listed_with_key_and_deposit(deployed: World) -> None:
    peer = PEERS[0]
    deployed.send(peer, "register", *deployed.registration(peer), value=DEPOSIT + 7)
    expected = (peer.address.lower(), peer.peer_id, *peer.pvss_xy, DEPOSIT + 7, False)
    assert [tuple(entry) for entry in deployed.view("registrations")] == [expected]
    (event,) = deployed.logs("Registered")
    assert (event["account"], event["pvss_x"], event["deposit"]) == (peer.address, peer.pvss_xy[0], DEPOSIT + 7)


def test_register__reverts__deposit_too_small(deployed: World) -> None:
    arguments = deployed.registration(PEERS[0])
    assert deployed.reason(PEERS[0], "register", *arguments, value=DEPOSIT - 1) == "deposit too small"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peer_id": b""}, "empty peer id"),
        ({"peer_id": PEERS[1].peer_id}, "peer id taken"),
        ({"pvss_xy": PEERS[1].pvss_xy}, "pvss key taken"),
        ({"pvss_xy": (PEERS[1].pvss_xy[0], FIELD - PEERS[1].pvss_xy[1])}, "pvss key taken"),
        ({"pvss_xy": (ORDER, 1)}, "pvss key out of range"),
        ({"pvss_xy": (PEERS[8].pvss_xy[0], FIELD)}, "pvss key out of range"),
        ({"pvss_xy": (PEERS[8].pvss_xy[0], PEERS[8].pvss_xy[1] ^ 1)}, "pvss key not on curve"),
        ({"pvss_xy": (0, 0)}, "pvss key not on curve"),
        ({"pvss_xy": (PEERS[8].pvss_xy[0], FIELD - PEERS[8].pvss_xy[1])}, "no possession of pvss key"),
        ({"pvss_secret": PEERS[7].pvss_secret}, "no possession of pvss key"),
        ({"task": bytes(32)}, "no possession of pvss key"),
        ({"address": PEERS[0].address}, "no possession of pvss key"),
    ],
)
def test_register__reverts(registered: World, changes: dict[str, object], reason: str) -> None:
    arguments = registered.registration(PEERS[8], **changes)
    assert registered.reason(PEERS[8], "register", *arguments, value=DEPOSIT) == reason


def test_register__reverts__signature_of_another_peer_id(registered: World) -> None:
    arguments = replaced(registered.registration(PEERS[8]), _0=b"somebody else")
    assert registered.reason(PEERS[8], "register", *arguments, value=DEPOSIT) == "no possession of pvss key"


def test_register__reverts__copied_by_another_sender(registered: World) -> None:
    arguments = registered.registration(PEERS[8])
    assert registered.reason(PEERS[9], "register", *arguments, value=DEPOSIT) == "no possession of pvss key"


def test_an_address_registers_once_even_after_it_left(registered: World) -> None:
    peer = PEERS[3]
    other = registered.registration(PEERS[8], address=peer.address)
    assert registered.reason(peer, "register", *other, value=DEPOSIT) == "already registered"
    registered.send(peer, "request_exit")
    registered.mine(TASK.cooldown_blocks)
    registered.send(peer, "withdraw")
    assert registered.reason(peer, "register", *other, value=DEPOSIT) == "already registered"


@pytest.mark.slow
def test_register__reverts__registry_full() -> None:
    world = World()
    world.deploy()
    for i in range(256):
        account = Peer(2**100 + i)
        fund = {"from": PEERS[0].address, "to": account.address, "value": hex(10**17)}
        world.evm.request("eth_sendTransaction", [fund])
        world.evm._backend.add_account(account.secret.to_bytes(32, "big"))
        world.register(account)
    assert len(world.view("registrations")) == 256
    arguments = world.registration(PEERS[0])
    assert world.reason(PEERS[0], "register", *arguments, value=DEPOSIT) == "registry full"


# --- start -------------------------------------------------------------------------------------------------------


def test_start_installs_epoch_0_and_records_the_block(registered: World) -> None:
    receipt = registered.send(STRANGER, "start", addresses(MEMBERS))
    assert registered.view("start_block") == int(receipt["blockNumber"], 16)
    assert registered.view("list_hash", 0) == list_hash(MEMBERS)
    (event,) = registered.logs("Started")
    assert event == {"block_number": registered.view("start_block"), "list_hash": list_hash(MEMBERS)}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (PEERS[:3], "too few members"),
        ([PEERS[1], PEERS[0], PEERS[2], PEERS[3]], "list not ascending"),
        ([PEERS[0], PEERS[0], PEERS[1], PEERS[2]], "list not ascending"),
        ([PEERS[0], PEERS[1], PEERS[2], PEERS[9]], "not registered"),
        (PEERS[:5], "incomplete list"),
    ],
)
def test_start__reverts(registered: World, members: list[Peer], reason: str) -> None:
    assert registered.reason(STRANGER, "start", addresses(members)) == reason


def test_start__reverts__without_one_who_registered(registered: World) -> None:
    registered.register(PEERS[4])
    assert registered.reason(STRANGER, "start", addresses(MEMBERS)) == "incomplete list"


def test_start_leaves_out_who_exits(registered: World) -> None:
    registered.register(PEERS[4])
    registered.send(PEERS[1], "request_exit")
    assert registered.reason(STRANGER, "start", addresses(MEMBERS)) == "member is exiting"
    staying = [PEERS[0], PEERS[2], PEERS[3], PEERS[4]]
    assert registered.reason(STRANGER, "start", addresses(staying)) is None


def test_start__reverts__twice(started: World) -> None:
    assert started.reason(STRANGER, "start", addresses(MEMBERS)) == "already started"


# --- anchors -----------------------------------------------------------------------------------------------------


def test_anchor_records_the_head_and_installs_the_next_list(started: World) -> None:
    next_peers = [*PEERS[1:5], PEERS[5]]
    head = started.head(0, next_peers)
    arguments = started.anchoring(head, MEMBERS, next_peers, [0, 2, 3], view=5)
    started.send(STRANGER, "anchor", *arguments)
    assert started.view("anchored_head", 0) == head_digest(head)
    assert started.view("list_hash", 1) == list_hash(next_peers)
    assert started.view("next_epoch") == 1
    (event,) = started.logs("Anchored")
    assert event == {
        "epoch": 0,
        "round": 3,
        "head": head_digest(head),
        "view_number": 5,
        "bitmap": 0b1101,
        "sender": STRANGER.address,
    }


@pytest.mark.slow
def test_every_epoch_is_anchored_in_order_and_once(started: World) -> None:
    for epoch in range(TASK.epoch_count):
        next_peers = [] if epoch == TASK.epoch_count - 1 else MEMBERS
        for other in {0, epoch - 1, epoch + 1, TASK.epoch_count - 1} - {epoch, -1, TASK.epoch_count}:
            arguments = started.anchoring(started.head(other, next_peers), MEMBERS, next_peers, range(4))
            assert started.reason(STRANGER, "anchor", *arguments) == "not the next epoch"
        started.anchor(epoch, MEMBERS, next_peers)
    arguments = started.anchoring(started.head(6, []), MEMBERS, [], range(4))
    assert started.reason(STRANGER, "anchor", *arguments) == "run is over"
    assert [event["round"] for event in started.logs("Anchored")] == [3, 7, 11, 15, 19, 23, 29]


@pytest.mark.parametrize(("count", "reason"), [(2, "no quorum"), (3, None), (4, None)])
def test_anchor_needs_three_of_four(started: World, count: int, reason: str | None) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(count))
    assert started.reason(STRANGER, "anchor", *arguments) == reason


@pytest.mark.slow
@pytest.mark.parametrize("member_count", [1, 2, 3, 5, 6, 7])
def test_anchor_needs_the_quorum_of_params(member_count: int, deployed: World) -> None:
    deployed.deploy(TASK.model_copy(update={"members_min": 1}))
    members = PEERS[:member_count]
    deployed.register(*members)
    deployed.start(*members)
    quorum = params.quorum(member_count)
    for count, reason in ((quorum - 1, "no quorum"), (quorum, None)):
        arguments = deployed.anchoring(deployed.head(0, members), members, members, range(count))
        assert deployed.reason(STRANGER, "anchor", *arguments) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": bytes(32)}, "another task"),
        ({"round": 2}, "not the epoch's last round"),
        ({"round": 4}, "not the epoch's last round"),
        ({"next_members": bytes(32)}, "not the certified next members"),
        ({"next_members": list_hash(PEERS[:3])}, "not the certified next members"),
    ],
)
def test_anchor__reverts__head(started: World, changes: dict[str, object], reason: str) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS, **changes), MEMBERS, MEMBERS, range(4))
    assert started.reason(STRANGER, "anchor", *arguments) == reason


@pytest.mark.parametrize("word", ["parent", "contents", "state", "chain_block"])
def test_anchor__reverts__word_that_was_not_signed(started: World, word: str) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(4))
    forged = replaced(arguments, _1=started.head(0, MEMBERS, **{word: bytes([9]) * 32}))
    assert started.reason(STRANGER, "anchor", *forged) == "wrong signer"


@pytest.mark.parametrize("members", [PEERS[:3], PEERS[:5], [*PEERS[:3], PEERS[4]], []])
def test_anchor__reverts__other_members(started: World, members: list[Peer]) -> None:
    arguments = replaced(started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(3)), _2=addresses(members))
    assert started.reason(STRANGER, "anchor", *arguments) == "not the epoch's members"


def test_anchor__reverts__before_start(registered: World) -> None:
    arguments = registered.anchoring(registered.head(0, MEMBERS), MEMBERS, MEMBERS, range(4))
    assert registered.reason(STRANGER, "anchor", *arguments) == "not the epoch's members"
    nobody = registered.anchoring(registered.head(0, MEMBERS), [], MEMBERS, [])
    assert registered.reason(STRANGER, "anchor", *nobody) == "not the epoch's members"


@pytest.mark.parametrize(
    ("next_peers", "reason"),
    [
        ([], "empty list"),
        ([PEERS[1], PEERS[0]], "list not ascending"),
        ([PEERS[0], PEERS[0]], "list not ascending"),
        ([PEERS[0], STRANGER], "not registered"),
    ],
)
def test_anchor__reverts__next_members(started: World, next_peers: list[Peer], reason: str) -> None:
    head = started.head(0, next_peers, next_members=list_hash(next_peers))
    arguments = started.anchoring(head, MEMBERS, next_peers, range(4))
    assert started.reason(STRANGER, "anchor", *arguments) == reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("next_peers", "word"),
    [(MEMBERS, list_hash(MEMBERS)), (MEMBERS, bytes(32)), ([], bytes([1]) * 32)],
    ids=["both", "list", "word"],
)
def test_anchor__reverts__last_epoch_with_a_successor(started: World, next_peers: list[Peer], word: bytes) -> None:
    started.anchor_through(5, MEMBERS)
    head = started.head(6, [], next_members=word)
    arguments = started.anchoring(head, MEMBERS, next_peers, range(4))
    assert started.reason(STRANGER, "anchor", *arguments) == "last epoch has no next members"


def test_anchor__reverts__signatures_of_another_view(started: World) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(4), view=1)
    assert started.reason(STRANGER, "anchor", *replaced(arguments, _0=0)) == "wrong signer"


def test_anchor__reverts__skips(started: World) -> None:
    head = started.head(0, MEMBERS)
    skips = [started.envelope(peer, epoch=0, round=3, kind=CLOSE, body=CLOSED_BODY) for peer in MEMBERS]
    arguments = (0, head, addresses(MEMBERS), addresses(MEMBERS), *counted(range(4), skips))
    assert started.reason(STRANGER, "anchor", *arguments) == "wrong signer"


def test_anchor__reverts__notarizations(started: World) -> None:
    head = started.head(0, MEMBERS)
    body = sha256(msgpack.packb([head_digest(head)])).digest()
    votes = [started.envelope(peer, epoch=0, round=3, kind=3, body=body) for peer in MEMBERS]
    arguments = (0, head, addresses(MEMBERS), addresses(MEMBERS), *counted(range(4), votes))
    assert started.reason(STRANGER, "anchor", *arguments) == "wrong signer"


def test_one_members_signature_counts_once(started: World) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, [0, 1])
    _, _, _, _, _, rs, vss = arguments
    tripled = replaced(arguments, _4=0b111, _5=[rs[0], rs[1], rs[1]], _6=[vss[0], vss[1], vss[1]])
    assert started.reason(STRANGER, "anchor", *tripled) == "wrong signer"


@pytest.mark.parametrize(
    ("bitmap", "rs_kept", "vss_kept", "reason"),
    [
        (0b0011, 3, 3, "signatures do not fit bitmap"),
        (0b1111, 3, 3, "signatures do not fit bitmap"),
        (0b0111, 3, 2, "signatures do not fit bitmap"),
        (0b0111, 2, 3, "signatures do not fit bitmap"),
        (0b10011, 3, 3, "no such member"),
        (2**255 | 0b0011, 3, 3, "no such member"),
        (0b1011, 3, 3, "wrong signer"),
        (0, 0, 0, "no quorum"),
    ],
)
def test_anchor__reverts__bitmap(started: World, bitmap: int, rs_kept: int, vss_kept: int, reason: str) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(3))
    _, _, _, _, _, rs, vss = arguments
    changed = replaced(arguments, _4=bitmap, _5=rs[:rs_kept], _6=vss[:vss_kept])
    assert started.reason(STRANGER, "anchor", *changed) == reason


@pytest.mark.parametrize(
    ("s", "reason"), [(ORDER // 2, "wrong signer"), (ORDER // 2 + 1, "high s"), (2**255 - 1, "high s")]
)
def test_signature__reverts__high_s(started: World, s: int, reason: str) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(3))
    vss = [s.to_bytes(32, "big"), *arguments[6][1:]]
    assert started.reason(STRANGER, "anchor", *replaced(arguments, _6=vss)) == reason


@pytest.mark.parametrize(
    ("r", "vs"), [(0, 1), (1, 0), (ORDER, 1), (2**256 - 1, 1), (5, 1)], ids=["r0", "s0", "rN", "rmax", "no point"]
)
def test_signature__reverts__that_recovers_nobody(started: World, r: int, vs: int) -> None:
    arguments = started.anchoring(started.head(0, MEMBERS), MEMBERS, MEMBERS, range(3))
    rs = [r.to_bytes(32, "big"), *arguments[5][1:]]
    vss = [vs.to_bytes(32, "big"), *arguments[6][1:]]
    assert started.reason(STRANGER, "anchor", *replaced(arguments, _5=rs, _6=vss)) == "bad signature"


def test_a_slashed_or_exited_peer_does_not_block_an_anchor(started: World) -> None:
    started.send(STRANGER, "slash_by_equivocation", *started.equivocation(PEERS[0]))
    started.mine(TASK.cooldown_blocks)
    started.send(PEERS[4], "withdraw")
    next_peers = PEERS[:5]
    started.anchor(0, MEMBERS, next_peers)
    assert started.view("list_hash", 1) == list_hash(next_peers)


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "accuser", "loser"),
    [(GUILTY, 1, 0), (FALSE, 1, 1), (OBJECTIVE, 0, 0)],
    ids=["guilty", "false", "objective"],
)
def test_verdict_slashes_the_loser_once(started: World, outcome: int, accuser: int, loser: int) -> None:
    arguments = started.verdict(MEMBERS, [2, 3], outcome=outcome, accuser=accuser)
    started.send(STRANGER, "slash_by_verdict", *arguments)
    address = MEMBERS[loser].address
    assert started.view("deposits", address) == DEPOSIT - TASK.verdict_slash_wei
    assert started.view("slashed_by_verdict", address, 1)
    assert started.view("claimable", STRANGER.address) == TASK.verdict_slash_wei // 10
    (event,) = started.logs("Slashed")
    assert event == {
        "member": address,
        "amount": TASK.verdict_slash_wei,
        "evidence": outcome,
        "round": 1,
        "sender": STRANGER.address,
    }
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == "already slashed"


def test_one_audited_round_costs_its_loser_once_whoever_accuses(started: World) -> None:
    started.send(STRANGER, "slash_by_verdict", *started.verdict(MEMBERS, [2, 3]))
    again = started.verdict(MEMBERS, [1, 3], accuser=2)
    assert started.reason(STRANGER, "slash_by_verdict", *again) == "already slashed"
    other_round = started.verdict(MEMBERS, [2, 3], audited_round=0)
    assert started.reason(STRANGER, "slash_by_verdict", *other_round) is None
    other_loser = started.verdict(MEMBERS, [2, 3], outcome=FALSE)
    assert started.reason(STRANGER, "slash_by_verdict", *other_loser) is None


@pytest.mark.parametrize(
    ("jurors", "reason"), [([2], "no verdict"), ([2, 3], None), ([3], "no verdict"), ([], "no verdict")]
)
def test_verdict_needs_two_jurors_of_four(started: World, jurors: list[int], reason: str | None) -> None:
    assert started.reason(STRANGER, "slash_by_verdict", *started.verdict(MEMBERS, jurors)) == reason


@pytest.mark.parametrize("jurors", [[0, 2, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_accused_and_accuser_are_no_jurors(started: World, jurors: list[int]) -> None:
    assert started.reason(STRANGER, "slash_by_verdict", *started.verdict(MEMBERS, jurors)) == "party signed"


def test_the_accused_of_an_objective_fault_is_no_juror(started: World) -> None:
    arguments = started.verdict(MEMBERS, [0, 2, 3], outcome=OBJECTIVE, accuser=0)
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == "party signed"
    arguments = started.verdict(MEMBERS, [1, 2, 3], outcome=OBJECTIVE, accuser=0)
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"outcome": VOID}, "outcome slashes nobody"),
        ({"outcome": 0}, "outcome slashes nobody"),
        ({"outcome": 5}, "outcome slashes nobody"),
        ({"accuser": 0}, "accuser does not fit outcome"),
        ({"outcome": FALSE, "accuser": 0}, "accuser does not fit outcome"),
        ({"outcome": OBJECTIVE}, "accuser does not fit outcome"),
        ({"accused": 4}, "no such member"),
        ({"accuser": 4}, "no such member"),
        ({"accused": 2**255}, "no such member"),
        ({"round": 4, "audited_round": 2}, "round not in epoch"),
        ({"epoch": 1, "round": 4, "audited_round": 2}, "not the epoch's members"),
        ({"round": 2, "audited_round": 3}, "audit before its round"),
    ],
)
def test_slash_by_verdict__reverts(started: World, words: dict[str, int], reason: str) -> None:
    arguments = started.verdict(MEMBERS, [2, 3], **words) if words.get("accused", 0) < 2**64 else None
    if arguments is None:
        arguments = replaced(started.verdict(MEMBERS, [2, 3]), _2=words["accused"])
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == reason


def test_verdict_comes_within_lag_and_verdict_rounds_of_the_audited_round(started: World) -> None:
    started.anchor(0, MEMBERS, MEMBERS)
    latest = started.verdict(MEMBERS, [2, 3], epoch=1, round=6, audited_round=1)
    assert started.reason(STRANGER, "slash_by_verdict", *latest) is None
    late = started.verdict(MEMBERS, [2, 3], epoch=1, round=7, audited_round=1)
    assert started.reason(STRANGER, "slash_by_verdict", *late) == "audit too late"
    before_epoch = started.verdict(MEMBERS, [2, 3], epoch=1, round=3, audited_round=1)
    assert started.reason(STRANGER, "slash_by_verdict", *before_epoch) == "round not in epoch"


@pytest.mark.parametrize("position", range(6), ids=["epoch", "round", "accused", "accuser", "audited", "outcome"])
def test_slash_by_verdict__reverts__word_that_was_not_signed(started: World, position: int) -> None:
    started.anchor(0, MEMBERS, MEMBERS)
    signed = {"epoch": 0, "round": 3, "accused": 0, "accuser": 1, "audited_round": 1, "outcome": GUILTY}
    other = [1, 2, 2, 2, 2, FALSE][position]
    changes = {f"_{position}": other} | ({"_1": 4} if position == 0 else {})
    arguments = replaced(started.verdict(MEMBERS, [3], **signed), **changes)
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == "wrong signer"


def test_slash_by_verdict__reverts__other_members(started: World) -> None:
    arguments = replaced(started.verdict(MEMBERS, [2, 3]), _6=addresses(PEERS[:5]))
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == "not the epoch's members"


@pytest.mark.slow
def test_judges_body_is_canonical_msgpack_for_integers_of_every_length(deployed: World) -> None:
    deployed.deploy(TASK.model_copy(update={"training_rounds": 90_000, "epoch_rounds": 89_000, "members_min": 2}))
    members = PEERS[:3]
    deployed.register(*members)
    deployed.start(*members)
    for audited_round in (0, 127, 128, 255, 256, 65_535, 65_536, 80_000):
        words = {"round": audited_round + 2, "audited_round": audited_round}
        arguments = deployed.verdict(members, [2], **words)
        assert deployed.reason(STRANGER, "slash_by_verdict", *arguments) is None


@pytest.mark.slow
def test_slash_takes_no_more_than_is_left(started: World) -> None:
    peer = MEMBERS[0]
    for audited_round in range(4):
        arguments = started.verdict(MEMBERS, [2, 3], audited_round=audited_round)
        started.send(STRANGER, "slash_by_verdict", *arguments)
    assert started.view("deposits", peer.address) == 0
    assert [event["amount"] for event in started.logs("Slashed")] == [3_000, 3_000, 3_000, 1_000]
    started.send(STRANGER, "slash_by_equivocation", *started.equivocation(peer))
    assert started.logs("Slashed")[-1]["amount"] == 0
    assert started.view("claimable", STRANGER.address) == DEPOSIT // 10


# --- equivocation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(1, 7))
def test_equivocation_is_slashed_for_every_kind(started: World, kind: int) -> None:
    peer = MEMBERS[2]
    arguments = started.equivocation(peer, kind=kind, view=3)
    started.send(STRANGER, "slash_by_equivocation", *arguments)
    assert started.view("deposits", peer.address) == DEPOSIT - TASK.equivocation_slash_wei
    assert started.view("slashed_by_equivocation", peer.address, 0, 2)
    assert started.view("claimable", STRANGER.address) == TASK.equivocation_slash_wei // 10
    (event,) = started.logs("Slashed")
    assert (event["evidence"], event["round"]) == (EVIDENCE_EQUIVOCATION, 2)


def test_equivocation_costs_once_a_round(started: World) -> None:
    peer = MEMBERS[2]
    started.send(STRANGER, "slash_by_equivocation", *started.equivocation(peer))
    for other_slot in ({"view": 1}, {"kind": 1}, {"bodies": b"ba"}, {"bodies": b"cd"}):
        arguments = started.equivocation(peer, **other_slot)
        assert started.reason(STRANGER, "slash_by_equivocation", *arguments) == "already slashed"
    assert started.reason(STRANGER, "slash_by_equivocation", *started.equivocation(peer, round=3)) is None
    assert started.reason(STRANGER, "slash_by_equivocation", *started.equivocation(MEMBERS[1])) is None


def test_slash_by_equivocation__reverts__same_body(started: World) -> None:
    arguments = started.equivocation(MEMBERS[0], bodies=b"aa")
    assert started.reason(STRANGER, "slash_by_equivocation", *arguments) == "same body"


def test_slash_by_equivocation__reverts__not_registered(started: World) -> None:
    assert started.reason(STRANGER, "slash_by_equivocation", *started.equivocation(STRANGER)) == "not registered"


@pytest.mark.parametrize("position", range(7), ids=["accused", "epoch", "round", "view", "kind", "body a", "body b"])
def test_slash_by_equivocation__reverts__word_that_was_not_signed(started: World, position: int) -> None:
    other = [MEMBERS[1].address, 1, 3, 1, 5, bytes(32), bytes(32)][position]
    arguments = replaced(started.equivocation(MEMBERS[0]), **{f"_{position}": other})
    assert started.reason(STRANGER, "slash_by_equivocation", *arguments) == "wrong signer"


def test_slash_by_equivocation__reverts__other_task(started: World) -> None:
    arguments = started.equivocation(MEMBERS[0])
    foreign = started.envelope(MEMBERS[0], task=bytes(32), epoch=0, round=2, kind=CLOSE, body=arguments[5])
    assert started.reason(STRANGER, "slash_by_equivocation", *arguments[:7], *foreign, *arguments[9:]) == "wrong signer"


def test_votes_in_different_slots_are_no_equivocation(started: World) -> None:
    first = started.equivocation(MEMBERS[0], view=0)
    second = started.equivocation(MEMBERS[0], view=1)
    mixed = (*first[:7], *first[7:9], *second[9:])
    assert started.reason(STRANGER, "slash_by_equivocation", *mixed) == "wrong signer"


# --- leaving -----------------------------------------------------------------------------------------------------


def test_never_a_member_waits_for_the_cooldown_only(registered: World) -> None:
    peer = PEERS[3]
    assert registered.reason(peer, "withdraw") == "no exit requested"
    registered.send(peer, "request_exit")
    registered.mine(TASK.cooldown_blocks - 2)  # a call runs in the block after the head
    assert registered.reason(peer, "withdraw") == "cooldown"
    registered.mine()
    before = registered.balance(registered.contract)
    registered.send(peer, "withdraw")
    assert registered.balance(registered.contract) == before - DEPOSIT
    assert registered.view("deposits", peer.address) == 0
    assert registered.reason(peer, "withdraw") == "nothing to withdraw"
    assert registered.logs("Withdrawn") == [{"account": peer.address, "amount": DEPOSIT}]


def test_request_exit__reverts(registered: World) -> None:
    assert registered.reason(STRANGER, "request_exit") == "not registered"
    registered.send(PEERS[0], "request_exit")
    assert registered.reason(PEERS[0], "request_exit") == "already exiting"


def test_withdraw__reverts__by_a_stranger(registered: World) -> None:
    assert registered.reason(STRANGER, "withdraw") == "no exit requested"


@pytest.mark.slow
def test_a_member_waits_until_its_last_rounds_are_audited_and_anchored(started: World) -> None:
    leaver, staying = MEMBERS[0], PEERS[1:6]
    started.send(leaver, "request_exit")
    started.mine(TASK.cooldown_blocks)
    assert started.reason(leaver, "withdraw") == "audits pending"
    started.anchor(0, MEMBERS, staying)
    assert started.reason(leaver, "withdraw") == "audits pending"
    started.anchor(1, staying, staying)
    # its last round was 3, so verdicts come until 3 + 2 + 3 = 8; epoch 1 starts at 4, epoch 2 at 8
    assert started.reason(leaver, "withdraw") == "audits pending"
    started.anchor(2, staying, staying)
    assert started.reason(leaver, "withdraw") is None


@pytest.mark.slow
def test_an_epoch_that_starts_before_the_last_verdict_does_not_count(deployed: World) -> None:
    deployed.deploy(TASK.model_copy(update={"verdict_rounds": 4}))
    deployed.register(*PEERS[:5])
    deployed.start(*PEERS[:5])
    leaver, staying = PEERS[0], PEERS[1:5]
    deployed.send(leaver, "request_exit")
    deployed.anchor(0, PEERS[:5], staying)
    deployed.anchor(1, staying, staying)
    deployed.anchor(2, staying, staying)  # starts at 8; verdicts come until 3 + 2 + 4 = 9
    assert deployed.reason(leaver, "withdraw") == "audits pending"
    deployed.anchor(3, staying, staying)
    assert deployed.reason(leaver, "withdraw") is None


@pytest.mark.slow
def test_a_member_of_the_next_list_waits_for_that_epochs_audits(started: World) -> None:
    leaver, staying = MEMBERS[0], PEERS[1:6]
    started.send(leaver, "request_exit")
    started.mine(TASK.cooldown_blocks)
    started.anchor(0, MEMBERS, MEMBERS)
    started.anchor(1, MEMBERS, staying)
    started.anchor(2, staying, staying)
    assert started.reason(leaver, "withdraw") == "audits pending"
    started.anchor(3, staying, staying)
    assert started.reason(leaver, "withdraw") is None


@pytest.mark.slow
def test_after_the_last_anchor_everybody_leaves_a_cooldown_later(started: World) -> None:
    early, late = MEMBERS[0], MEMBERS[1]
    started.send(early, "request_exit")
    started.anchor_through(6, MEMBERS)
    assert started.reason(early, "withdraw") == "cooldown"  # however long ago it asked
    started.send(late, "request_exit")
    started.mine(TASK.cooldown_blocks - 2)
    assert started.reason(early, "withdraw") is None
    assert started.reason(late, "withdraw") == "cooldown"
    started.mine()
    assert started.reason(late, "withdraw") is None


def test_when_no_anchor_comes_deposits_are_free(started: World) -> None:
    started.send(MEMBERS[0], "request_exit")
    started.mine(TASK.stall_blocks - 2)
    assert started.reason(MEMBERS[0], "withdraw") == "audits pending"
    started.mine()
    assert started.reason(MEMBERS[0], "withdraw") is None
    assert started.reason(MEMBERS[1], "withdraw") == "no exit requested"
    started.anchor(0, MEMBERS, MEMBERS)  # and not any more
    assert started.reason(MEMBERS[0], "withdraw") == "audits pending"


def test_when_it_never_starts_deposits_are_free(registered: World) -> None:
    registered.mine(TASK.stall_blocks)
    registered.send(PEERS[0], "request_exit")
    assert registered.reason(PEERS[0], "withdraw") is None


@pytest.mark.slow
def test_what_is_slashed_is_shared_or_burnt(started: World) -> None:
    """INVARIANT: the contract holds at least all deposits and claims; the burnt part stays when all have left."""
    reporter = EXITED[0]
    started.send(reporter, "slash_by_equivocation", *started.equivocation(MEMBERS[0]))
    started.send(reporter, "slash_by_verdict", *started.verdict(MEMBERS, [2, 3], accused=1, accuser=0))
    share = (TASK.equivocation_slash_wei + TASK.verdict_slash_wei) // 10
    before = started.balance(started.contract)
    started.send(reporter, "claim")
    assert started.balance(started.contract) == before - share
    assert started.logs("Claimed") == [{"account": reporter.address, "amount": share}]
    assert started.reason(reporter, "claim") == "nothing to claim"
    started.mine(TASK.stall_blocks)
    for peer in PEERS[:6]:
        if peer in MEMBERS:
            started.send(peer, "request_exit")
        started.send(peer, "withdraw")
    burnt = TASK.equivocation_slash_wei + TASK.verdict_slash_wei - share
    assert started.balance(started.contract) == burnt


def test_reporters_share_is_that_of_params(started: World) -> None:
    started.send(STRANGER, "slash_by_equivocation", *started.equivocation(MEMBERS[0]))
    share = TASK.equivocation_slash_wei * params.REPORTER_SHARE_BPS // 10_000
    assert started.view("claimable", STRANGER.address) == share


def test_money_sent_without_a_call_is_refused(registered: World) -> None:
    transfer = {"from": STRANGER.address, "to": registered.contract, "value": "0x1"}
    with pytest.raises(RpcError, match="reverted"):
        registered.evm.request("eth_call", [transfer])


def test_an_objective_fault_has_a_slot_of_its_own(started: World) -> None:
    """JUDGEs in the slot of the accused's own accusation prove nothing about its objective fault."""
    arguments = list(started.verdict(MEMBERS, [1, 2, 3], outcome=FALSE, accused=2, accuser=0))
    arguments[2:6] = [0, 0, 3, OBJECTIVE]
    assert started.reason(STRANGER, "slash_by_verdict", *arguments) == "wrong signer"
