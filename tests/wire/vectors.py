"""The test vectors of docs/wire.md, computed by the code that peers run, from fixed seeds.

`make vectors` writes them to docs/wire-vectors.json; test_wire compares.  Bytes are hex.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from p2pdfl.base.codec import body_digest, digest_of, encode
from p2pdfl.base.task import Task
from p2pdfl.base.types import (
    ZERO_DIGEST,
    Accuse,
    Ballot,
    Certificate,
    Checkpoint,
    CheckpointRound,
    Close,
    Commit,
    CommitEntry,
    Contents,
    Dealing,
    Digest,
    Entropy,
    Envelope,
    EquivocationEntry,
    EquivocationProof,
    Head,
    Judge,
    Kind,
    Member,
    Notarize,
    Outcome,
    Packet,
    Payload,
    Propose,
    Share,
    UpdateEntry,
    VerdictEntry,
    VerdictProof,
    Wire,
)
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain, Signer, envelope_digest, head_digest, list_hash, possession_digest
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning import compression, quantize
from p2pdfl.learning.state import State
from p2pdfl.net.blobs.pull import CHUNK_BYTES, Served, chunk_count, encode_reply, encode_request
from p2pdfl.protocol import assignment
from p2pdfl.protocol.beacon import FixedDealings, dealing_context, fix_dealings, initial_beacon, initial_parent
from p2pdfl.protocol.checkpoint import CheckpointReply, CheckpointRequest
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.resync import ResyncReply, ResyncRequest, packet_id

Vector = dict[str, Any]

MEMBER_COUNT = 4
DOMAIN = Domain(chain_id=31337, contract=bytes(range(1, 21)))
CLOSING_BLOCK = sha256(b"the block that closed registration").digest()
CHAIN_BLOCK = sha256(b"a confirmed block").digest()
SEQNO = 1_700_000_000_000_000_001
DIMENSION = 5
VALUES = (0.5, -0.25, 3.0, 0.001, 0.0)
LONG_VALUES = tuple(place % 8 - 3.0 for place in range(600))
LONG_FRAME = bytes.fromhex("28b52ffd64590185000048fcd0e0f0001020304001004d569523a237e276")
"""Those as one version of zstd compressed them.  Another may come to other bytes."""
TASK = Task(
    name="vectors",
    audit_fraction=0.5,
    learning_rate=0.1,
    outer_momentum=0.9,
    members_min=MEMBER_COUNT,
    data_digest=sha256(b"data").digest(),
    initial_state=sha256(b"initial state").digest(),
    reference_replay=sha256(b"reference replay").digest(),
)
TASK_ID = TASK.task_id()
TOPIC = f"/p2pdfl/2/{TASK_ID.hex()}"


def entropy(label: str) -> Entropy:
    """A stream that is the same at every call: the vectors' randomness."""

    def blocks() -> Iterator[int]:
        counter = 0
        while True:
            yield from sha256(f"p2pdfl/vectors/{label}/{counter}".encode()).digest()
            counter += 1

    stream = blocks()
    return lambda count: bytes(next(stream) for _ in range(count))


def peer_id(keys: Keys) -> bytes:
    return ID.from_pubkey(create_new_key_pair(keys.peer_secret).public_key).to_base58().encode()


@dataclass(frozen=True)
class Peer:
    seed: bytes
    keys: Keys
    signer: Signer


def _peers() -> list[Peer]:
    """By ascending address."""
    seeds = [bytes([number]) * 32 for number in range(1, MEMBER_COUNT + 1)]
    peers = [Peer(seed, derive(seed), Signer(derive(seed).chain_secret)) for seed in seeds]
    return sorted(peers, key=lambda peer: peer.keys.address)


PEERS = _peers()
EPOCH = EpochMembers(
    epoch=0,
    first_round=0,
    last_round=12,
    members=tuple(
        Member(address=peer.keys.address, peer_id=peer_id(peer.keys), pvss_key=peer.keys.pvss_key) for peer in PEERS
    ),
)


def compute() -> Vector:
    genesis = _genesis()
    update = _update()
    parent = bytes.fromhex(genesis["parent"])
    commits = [Commit(parent=parent, update=ZERO_DIGEST, dealing=dealing, share=None) for dealing in DEALINGS]
    contents = Contents(
        commits=tuple(CommitEntry(member=index, body=body_digest(commit)) for index, commit in enumerate(commits)),
        updates=(),
        evidence=(),
        verdicts=(),
        banned=list_hash(()),
    )
    head = _head(0, parent, contents)
    beacon = _beacon(head_digest(head))
    packets = _packets(head, contents, bytes.fromhex(update["digest"]))
    return {
        "keys": [_keys(peer) for peer in PEERS],
        "task": _task(),
        "domain": {"chain_id": DOMAIN.chain_id, "contract": DOMAIN.contract.hex()},
        "possession": _possession(PEERS[0]),
        "genesis": genesis,
        "dealings": [_dealing(index, dealing) for index, dealing in enumerate(DEALINGS)],
        "contents": _wire(contents) | {"digest": digest_of(contents).hex()},
        "head": {"fields": as_json(head), "digest": head_digest(head).hex()},
        "shares": beacon,
        "draws": _draws(bytes.fromhex(beacon["beacon"])),
        "update": update,
        "state": _state(),
        "packets": [_packet(*signed) for signed in packets],
        "resync": _resync([packet for packet, _ in packets], head_digest(head)),
        "checkpoint": _checkpoint(packets[0][0], packets[1][0], certificate(Kind.CLOSE, 0, 0, head_digest(head))),
        "gossip": _gossip(b"\x01" + encode(packets[0][0])),
        "gossip_kinds": {
            "packet": (b"\x01" + encode(packets[0][0])).hex(),
            "update": (b"\x02" + bytes.fromhex(update["bytes"])).hex(),
            "announcement": (b"\x03" + bytes.fromhex(update["digest"])).hex(),
        },
        "pull": _pull(bytes.fromhex(update["bytes"])),
    }


def as_json(value: Any) -> Any:
    if isinstance(value, Wire):
        return {name: as_json(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _wire(value: Wire) -> Vector:
    return {"fields": as_json(value), "bytes": encode(value).hex()}


def _keys(peer: Peer) -> Vector:
    keys = peer.keys
    return {
        "seed": peer.seed.hex(),
        "libp2p_secret": keys.peer_secret.hex(),
        "peer_id": peer_id(keys).decode(),
        "chain_secret": keys.chain_secret.hex(),
        "address": keys.address.hex(),
        "pvss_secret": keys.pvss_secret.hex(),
        "pvss_key": keys.pvss_key.hex(),
    }


def _task() -> Vector:
    return {"fields": TASK.model_dump(mode="json", exclude_none=True), "task_id": TASK_ID.hex(), "topic": TOPIC}


def _possession(peer: Peer) -> Vector:
    digest = possession_digest(DOMAIN, TASK_ID, peer.keys.address, peer_id(peer.keys))
    signature = Signer(peer.keys.pvss_secret).sign_digest(digest)
    return {
        "address": peer.keys.address.hex(),
        "peer_id": peer_id(peer.keys).decode(),
        "digest": digest.hex(),
        "signature": signature.hex(),
    }


def _genesis() -> Vector:
    assert TASK.initial_state is not None
    list_hash = EPOCH.list_hash
    return {
        "list_hash": list_hash.hex(),
        "initial_state": TASK.initial_state.hex(),
        "closing_block": CLOSING_BLOCK.hex(),
        "parent": initial_parent(TASK_ID, list_hash, TASK.initial_state, CLOSING_BLOCK).hex(),
        "beacons": [initial_beacon(TASK_ID, list_hash, CLOSING_BLOCK, round).hex() for round in (0, 1)],
    }


# --- beacon ----------------------------------------------------------------------------------------------------------


def deal(dealer: int, round: int) -> Dealing:
    context = dealing_context(TASK_ID, round, EPOCH.addresses[dealer], EPOCH)
    return pvss.deal(context, EPOCH.keys, EPOCH.threshold, entropy(f"deal {dealer} {round}"))


DEALINGS = [deal(dealer, 0) for dealer in range(MEMBER_COUNT - 1)]
"""The last member is absent in round 0."""


def _dealing(dealer: int, dealing: Dealing) -> Vector:
    return {
        "round": 0,
        "dealer": dealer,
        "threshold": EPOCH.threshold,
        "context": dealing_context(TASK_ID, 0, EPOCH.addresses[dealer], EPOCH).hex(),
        **_wire(dealing),
    }


def fixed_dealings(head: Digest) -> FixedDealings:
    """Those of round 0."""
    return fix_dealings(task=TASK_ID, round=0, head=head, holders=EPOCH, dealings=DEALINGS)


def decrypt(fixed: FixedDealings, holder: int) -> Share:
    keys = PEERS[holder].keys
    return pvss.decrypt(
        fixed.share_context(holder), keys.pvss_secret, keys.pvss_key, fixed.summed[holder], entropy(f"decrypt {holder}")
    )


def _beacon(head: Digest) -> Vector:
    fixed = fixed_dealings(head)
    shares = {holder: decrypt(fixed, holder) for holder in range(MEMBER_COUNT)}
    return {
        "round": 0,
        "head": head.hex(),
        "summed": [point.hex() for point in fixed.summed],
        "shares": [
            {"holder": holder, "context": fixed.share_context(holder).hex(), **_wire(share)}
            for holder, share in shares.items()
        ],
        "beacon_round": 2,
        "beacon": fixed.recover(shares).hex(),
    }


def _draws(beacon: Digest) -> Vector:
    everybody = range(MEMBER_COUNT)
    drawn = assignment.compute_assignment(
        beacon=beacon,
        unbanned=everybody,
        present=(0, 1, 2),
        audit_fraction=TASK.audit_fraction,
        audited=(0, 1, 2),
        is_training_round=True,
    )
    return {
        "beacon": beacon.hex(),
        "round": 2,
        "present": [0, 1, 2],
        "audited": [0, 1, 2],
        "audit_fraction": TASK.audit_fraction,
        "leaders": list(drawn.leaders),
        "audits": {str(auditor): target for auditor, target in sorted(drawn.audits.items())},
        "batch_seeds": [assignment.batch_seed(beacon, TASK_ID, 2, address).hex() for address in EPOCH.addresses],
    }


# --- learning --------------------------------------------------------------------------------------------------------


def _update() -> Vector:
    header = quantize.Header(task_id=TASK_ID, round=0, author=EPOCH.addresses[0], dimension=DIMENSION)
    data = quantize.encode(np.array(VALUES), header)
    coarse = quantize.encode(np.array(VALUES), header, quantize.INT4)
    long = quantize.Header(task_id=TASK_ID, round=0, author=EPOCH.addresses[0], dimension=len(LONG_VALUES))
    compressed = long.to_bytes() + LONG_FRAME
    expanded = compression.expand(compressed, long, quantize.INT8)
    assert expanded == quantize.encode(np.array(LONG_VALUES), long)
    return {
        "round": 0,
        "author": EPOCH.addresses[0].hex(),
        "values": list(VALUES),
        "decoded": quantize.decode(data, header).tolist(),
        "bytes": data.hex(),
        "digest": sha256(data).hexdigest(),
        "int4": {"decoded": quantize.decode(coarse, header, quantize.INT4).tolist(), "bytes": coarse.hex()},
        "zstd": {"decoded": list(LONG_VALUES), "bytes": compressed.hex(), "expanded": expanded.hex()},
    }


def _state() -> Vector:
    state = State(parameters=np.array([1.0, -2.5]), momentum=np.array([0.0, 0.125]))
    return {
        "parameters": state.parameters.tolist(),
        "momentum": state.momentum.tolist(),
        "digest": state.digest().hex(),
    }


# --- packets ---------------------------------------------------------------------------------------------------------


def _head(round: int, parent: Digest, contents: Contents) -> Head:
    return Head(
        task=TASK_ID,
        epoch=0,
        round=round,
        parent=parent,
        contents=digest_of(contents),
        state=bytes.fromhex(_state()["digest"]),
        next_members=ZERO_DIGEST,
        chain_block=CHAIN_BLOCK,
    )


def _packets(head: Head, contents: Contents, update: Digest) -> list[tuple[Packet, Payload]]:
    """Of every kind and with every optional part.  They need not fit into one run."""
    digest = head_digest(head)
    judge = Judge(accused=1, accuser=0, audited_round=0, outcome=Outcome.GUILTY)
    signed: list[tuple[int, Kind, int, int, Payload]] = [
        (0, Kind.COMMIT, 1, 0, Commit(parent=digest, update=update, dealing=deal(0, 1), share=_share(0, head))),
        (1, Kind.PROPOSE, 0, 0, _propose(contents, head)),
        (0, Kind.NOTARIZE, 0, 0, Notarize(head=digest)),
        (0, Kind.CLOSE, 0, 0, Close(head=digest)),
        (1, Kind.CLOSE, 0, 0, Close(head=digest)),
        (3, Kind.CLOSE, 0, 1, Close(head=ZERO_DIGEST)),
        (0, Kind.ACCUSE, 2, 0, Accuse(accused=1, audited_round=0)),
        (2, Kind.JUDGE, 2, 0, judge),
        (3, Kind.JUDGE, 2, 256 + 1, Judge(accused=1, accuser=1, audited_round=2, outcome=Outcome.OBJECTIVE)),
        (2, Kind.PROPOSE, 3, 2, _late_proposal(contents, digest, update, judge)),
    ]
    return [
        (_sign(member, kind, payload, round=round, view=view), payload) for member, kind, round, view, payload in signed
    ]


def _late_proposal(contents: Contents, parent: Digest, update: Digest, judge: Judge) -> Propose:
    """Of view 2, with all that a proposal can carry."""
    votes = sorted((Notarize(head=parent), Notarize(head=CHAIN_BLOCK)), key=body_digest)
    equivocation = EquivocationEntry(
        member=3,
        epoch=0,
        round=2,
        view=0,
        kind=int(Kind.NOTARIZE),
        body_low=body_digest(votes[0]),
        body_high=body_digest(votes[1]),
    )
    verdict = VerdictEntry(epoch=0, round=2, accused=1, accuser=0, audited_round=0, outcome=judge.outcome)
    listed = Contents(
        commits=contents.commits,
        updates=(UpdateEntry(member=0, update=update),),
        evidence=(equivocation,),
        verdicts=(verdict,),
        banned=list_hash(EPOCH.addresses[2:3]),
    )
    head = _head(3, parent, listed)
    low, high = (_sign(3, Kind.NOTARIZE, vote, round=2).signature for vote in votes)
    jurors = [Ballot(member=juror, signature=_sign(juror, Kind.JUDGE, judge, round=2).signature) for juror in (2, 3)]
    return Propose(
        contents=listed,
        head=head,
        notarization=certificate(Kind.NOTARIZE, 3, 0, head_digest(head)),
        skips=(certificate(Kind.CLOSE, 3, 1, ZERO_DIGEST),),
        equivocations=(EquivocationProof(entry=equivocation, signature_low=low, signature_high=high),),
        verdicts=(VerdictProof(entry=verdict, ballots=tuple(jurors)),),
    )


def _share(holder: int, head: Head) -> Share:
    """Of the dealings of the first three members in round 0."""
    return decrypt(fixed_dealings(head_digest(head)), holder)


def _propose(contents: Contents, head: Head) -> Propose:
    return Propose(contents=contents, head=head, notarization=None, skips=(), equivocations=(), verdicts=())


def _sign(member: int, kind: Kind, payload: Payload, *, round: int, view: int = 0) -> Packet:
    envelope = Envelope(task=TASK_ID, epoch=0, round=round, view=view, kind=int(kind), body=body_digest(payload))
    return Packet(envelope=envelope, signature=PEERS[member].signer.sign(DOMAIN, envelope), payload=encode(payload))


def certificate(kind: Kind, round: int, view: int, head: Digest) -> Certificate:
    vote: Payload = Notarize(head=head) if kind == Kind.NOTARIZE else Close(head=head)
    return Certificate(
        epoch=0,
        round=round,
        view=view,
        kind=int(kind),
        head=head,
        ballots=tuple(
            Ballot(member=member, signature=_sign(member, kind, vote, round=round, view=view).signature)
            for member in range(EPOCH.quorum)
        ),
    )


def _packet(packet: Packet, payload: Payload) -> Vector:
    envelope = packet.envelope
    digest = envelope_digest(DOMAIN, envelope)
    signers = [peer.keys.address for peer in PEERS if peer.signer.sign_digest(digest) == packet.signature]
    return {
        "kind": Kind(envelope.kind).name,
        "payload": as_json(payload),
        "envelope": as_json(envelope),
        "digest": digest.hex(),
        "signer": signers[0].hex(),
        "signature": packet.signature.hex(),
        "packet_id": packet_id(packet).hex(),
        "bytes": encode(packet).hex(),
    }


# --- network ---------------------------------------------------------------------------------------------------------


def _resync(packets: list[Packet], head: Digest) -> Vector:
    """As it goes over the stream, each way under its length."""
    request = ResyncRequest(task=TASK_ID, round=0, have=(packet_id(packets[1]),))
    reply = ResyncReply(packets=(packets[4],), certificates=(certificate(Kind.CLOSE, 0, 0, head),))
    return {"request": framed(encode(request)).hex(), "reply": framed(encode(reply)).hex()}


def _checkpoint(commit: Packet, proposal: Packet, closing: Certificate) -> Vector:
    """Of one round, of which not all fits; the request and the reply that offers it, each under its length."""
    checkpoint = Checkpoint(
        epoch=0,
        lists=(EPOCH.addresses, EPOCH.addresses[1:]),
        banned=EPOCH.addresses[:1],
        rounds=(CheckpointRound(proposal=proposal, commits=(commit,), certificate=closing),),
    )
    data = encode(checkpoint)
    digest = sha256(data).digest()
    return {
        "bytes": data.hex(),
        "digest": digest.hex(),
        "request": framed(encode(CheckpointRequest(task=TASK_ID, epoch=0))).hex(),
        "held": framed(encode(CheckpointReply(checkpoint=digest))).hex(),
        "not_held": framed(encode(CheckpointReply(checkpoint=None))).hex(),
    }


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _gossip(data: bytes) -> Vector:
    message = gossip_message(PEERS[0].keys.peer_secret, data, SEQNO)
    return {
        "author": peer_id(PEERS[0].keys).decode(),
        "sequence_number": str(SEQNO),
        "message_id": (message.from_id + message.seqno).hex(),
        "message": message.SerializeToString().hex(),
        "rpc": rpc_pb2.RPC(publish=[message]).SerializeToString().hex(),
    }


def gossip_message(key_seed: bytes, data: bytes, seqno: int) -> rpc_pb2.Message:
    key = create_new_key_pair(key_seed)
    message = rpc_pb2.Message(
        from_id=ID.from_pubkey(key.public_key).to_bytes(),
        data=data,
        seqno=seqno.to_bytes(8, "big"),
        topicIDs=[TOPIC],
    )
    message.signature = key.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    return message


def long_body() -> bytes:
    """Of three chunks, the last one short."""
    return bytes(place % 251 for place in range(2 * CHUNK_BYTES + 100))


def _pull(body: bytes) -> Vector:
    """Requests and replies under their lengths.  Of the long body the chunks are left out: they are made by a rule."""
    long = Served(long_body())
    digest = sha256(long.blob).digest()
    pieces = [long.piece(position) for position in range(chunk_count(len(long.blob)))]
    return {
        "held": {
            "request": framed(encode_request(sha256(body).digest(), 0)).hex(),
            "reply": framed(encode_reply(Served(body).piece(0))).hex(),
        },
        "not_held": {"request": framed(encode_request(bytes(32), 0)).hex(), "reply": framed(b"").hex()},
        "long": {
            "body": "byte i is i mod 251",
            "length": len(long.blob),
            "digest": digest.hex(),
            "chunks": [
                {
                    "request": framed(encode_request(digest, position)).hex(),
                    "length": len(piece.chunk),
                    "state": piece.state.hex(),
                }
                for position, piece in enumerate(pieces)
            ],
        },
    }


def text() -> str:
    return json.dumps(compute(), indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
    print(f"{sys.argv[1]} is written")
