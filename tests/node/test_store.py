from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from p2pdfl.base import codec
from p2pdfl.base.types import (
    Ballot,
    Certificate,
    Checkpoint,
    CheckpointRound,
    Close,
    CommitEntry,
    Contents,
    Digest,
    Envelope,
    Head,
    Kind,
    Notarize,
    Packet,
    Payload,
    UpdateEntry,
)
from p2pdfl.crypto.envelope import head_digest
from p2pdfl.node.store import Slot, SlotTaken, Store, StoreError
from p2pdfl.protocol.resync import ResyncReply

TASK = bytes(31) + b"\1"


def packet_of(payload: Payload, kind: Kind, *, round: int = 3, view: int = 0, signature: bytes = bytes(64)) -> Packet:
    envelope = Envelope(task=TASK, epoch=0, round=round, view=view, kind=int(kind), body=codec.body_digest(payload))
    return Packet(envelope=envelope, signature=signature, payload=codec.encode(payload))


def close_packet(head: Digest, *, round: int = 3, view: int = 0) -> Packet:
    return packet_of(Close(head=head), Kind.CLOSE, round=round, view=view)


def closing(round: int, update: Digest, parent: Digest = bytes(32)) -> tuple[Head, Contents, Certificate]:
    contents = Contents(
        commits=(CommitEntry(member=0, body=bytes(32)),),
        updates=(UpdateEntry(member=0, update=update),),
        evidence=(),
        verdicts=(),
        banned=bytes(32),
    )
    head = Head(
        task=TASK,
        epoch=0,
        round=round,
        parent=parent,
        contents=codec.digest_of(contents),
        state=bytes(32),
        next_members=bytes(32),
        chain_block=bytes(32),
    )
    ballots = (Ballot(member=0, signature=bytes(64)),)
    certificate = Certificate(
        epoch=0, round=round, view=0, kind=int(Kind.CLOSE), head=codec.digest_of(head), ballots=ballots
    )
    return head, contents, certificate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home" / "store.sqlite") as opened:
        yield opened


def test_an_envelope_comes_back_as_it_was_stored(store: Store) -> None:
    packet = close_packet(bytes(32))
    assert store.envelope(Slot.of(packet.envelope)) is None
    assert store.put_envelope(packet) == packet
    assert store.envelope(Slot.of(packet.envelope)) == packet


def test_the_same_body_again_returns_the_packet_stored_first(store: Store) -> None:
    first = packet_of(Close(head=bytes(32)), Kind.CLOSE, signature=bytes(64))
    again = packet_of(Close(head=bytes(32)), Kind.CLOSE, signature=bytes([1]) * 64)
    store.put_envelope(first)
    assert store.put_envelope(again) == first


def test_another_body_in_a_taken_slot_is_refused_and_changes_nothing(store: Store) -> None:
    first = close_packet(bytes(32))
    store.put_envelope(first)
    with pytest.raises(SlotTaken, match="round 3, view 0, CLOSE"):
        store.put_envelope(close_packet(b"\1" * 32))
    assert store.envelope(Slot.of(first.envelope)) == first


@pytest.mark.parametrize("other", [{"round": 4}, {"view": 1}])
def test_slots_differ_by_round_and_view(store: Store, other: dict[str, int]) -> None:
    store.put_envelope(close_packet(bytes(32)))
    store.put_envelope(close_packet(b"\1" * 32, **other))


def test_slots_differ_by_kind(store: Store) -> None:
    store.put_envelope(packet_of(Close(head=bytes(32)), Kind.CLOSE))
    store.put_envelope(packet_of(Notarize(head=b"\1" * 32), Kind.NOTARIZE))
    assert len(store.envelopes(3)) == 2
    assert store.envelopes(4) == ()


def test_a_slot_stays_taken_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.put_envelope(close_packet(bytes(32)))
    with Store(path) as store, pytest.raises(SlotTaken):
        store.put_envelope(close_packet(b"\1" * 32))


def test_threads_racing_for_one_slot_agree_on_one_body(store: Store) -> None:
    def put(number: int) -> bytes | None:
        try:
            return store.put_envelope(close_packet(bytes([number]) * 32)).envelope.body
        except SlotTaken:
            return None

    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(put, range(16)))
    assert len([body for body in bodies if body is not None]) == 1


def test_a_round_comes_back_as_it_was_stored(store: Store) -> None:
    head, contents, certificate = closing(0, bytes(32))
    packets = (close_packet(bytes(32), round=0), close_packet(bytes(32), round=0, view=1))
    assert store.last_round() is None
    assert store.round(0) is None
    store.put_round(0, head, contents, certificate, packets)
    stored = store.round(0)
    assert stored is not None
    assert (stored.head, stored.contents, stored.certificate, stored.packets) == (head, contents, certificate, packets)
    assert store.last_round() == 0


def test_what_was_notarized_is_kept_until_the_round_closes(store: Store) -> None:
    kept = []
    for view in range(2):
        certificate = closing(3, bytes(32))[2].replace(view=view, kind=int(Kind.NOTARIZE))
        packets = (close_packet(bytes(32), view=view),)
        store.put_notarized(certificate, packets)
        store.put_notarized(certificate, packets)
        kept.append(ResyncReply(packets=packets, certificates=(certificate,)))
    assert store.notarized(3) == tuple(kept)
    assert store.notarized(2) == ()
    store.put_round(3, *closing(3, bytes(32)), [])
    assert store.notarized(3) == ()


def test_a_closed_round_keeps_its_head(store: Store) -> None:
    head, contents, certificate = closing(0, bytes(32))
    store.put_round(0, head, contents, certificate, [])
    store.put_round(0, head, contents, certificate, [])
    with pytest.raises(StoreError, match="another head"):
        store.put_round(0, *closing(0, b"\1" * 32), [])


def test_blobs_come_back_by_digest(store: Store) -> None:
    digest = sha256(b"update").digest()
    assert store.blob(digest) is None
    store.put_blob(digest, b"update")
    store.put_blob(digest, b"update")
    assert store.blob(digest) == b"update"


def test_blobs_are_measured_together(store: Store) -> None:
    digests = [sha256(blob).digest() for blob in (b"one", b"three")]
    assert store.blob_bytes(digests) == 0
    store.put_blob(digests[0], b"one")
    assert store.blob_bytes(digests) == 3
    store.put_blob(digests[1], b"three")
    assert store.blob_bytes(digests) == 8


def test_a_damaged_blob_is_noticed(store: Store) -> None:
    digest = sha256(b"update").digest()
    store.put_blob(digest, b"not that")
    with pytest.raises(StoreError, match="damaged"):
        store.blob(digest)


def test_a_damaged_envelope_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    packet = close_packet(bytes(32))
    with Store(path) as store:
        store.put_envelope(packet)
    db = sqlite3.connect(path)
    db.execute("UPDATE envelopes SET packet = x'00'")
    db.commit()
    db.close()
    with Store(path) as store, pytest.raises(StoreError, match="damaged"):
        store.put_envelope(packet)


def test_a_full_disk_is_an_error_and_leaves_the_slot_free(store: Store) -> None:
    store._db.execute("PRAGMA max_page_count = 12")
    with pytest.raises(StoreError, match="full"):
        store.put_blob(sha256(b"").digest(), bytes(1 << 20))
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.put_envelope(close_packet(bytes(32)))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store(path)
    path.unlink()
    Store(path).close()  # the refusal gave the lock back


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="another version"):
        Store(path)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError, match="home"):
        Store(tmp_path / "home" / "store.sqlite")


def test_the_second_store_on_one_home_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="another process"):
        Store(store._path)


def _hold(path: Path, held: multiprocessing.synchronize.Event) -> None:
    Store(path)
    held.set()
    multiprocessing.Event().wait()


def test_a_killed_process_frees_its_home(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(path, held))
    other.start()
    assert held.wait(10)
    with pytest.raises(StoreError, match="another process"):
        Store(path)
    other.kill()
    other.join()
    Store(path).close()


def test_the_transcript_is_content_addressed_and_complete(store: Store, tmp_path: Path) -> None:
    update = sha256(b"update").digest()
    store.put_blob(update, b"update")
    packet = close_packet(bytes(32), round=0)
    head, contents, certificate = closing(0, update)
    store.put_round(0, head, contents, certificate, [packet])

    assert store.export_transcript(tmp_path / "transcript") == ()

    index = json.loads((tmp_path / "transcript" / "rounds" / "000000.json").read_text())
    blobs = {path.name: path.read_bytes() for path in (tmp_path / "transcript" / "blobs").iterdir()}
    assert all(sha256(data).hexdigest() == name for name, data in blobs.items())
    assert blobs[index["updates"][0]["digest"]] == b"update"
    assert blobs[index["packets"][0]["digest"]] == codec.encode(packet)
    assert blobs[index["certificate"]] == codec.encode(certificate)
    assert index["contents"] == index["head"]["contents"]
    assert blobs[index["contents"]] == codec.encode(contents)


def test_the_transcript_names_what_this_node_lacks(store: Store, tmp_path: Path) -> None:
    update = sha256(b"update").digest()
    store.put_round(0, *closing(0, update), [])
    assert store.export_transcript(tmp_path / "transcript") == (update,)
    index = json.loads((tmp_path / "transcript" / "rounds" / "000000.json").read_text())
    assert index["updates"] == [{"member": 0, "digest": update.hex(), "held": False}]


def a_checkpoint(epoch: int) -> Checkpoint:
    _, _, certificate = closing(epoch, bytes(32))
    packet = close_packet(bytes(32), round=epoch)
    opened = CheckpointRound(proposal=packet, commits=(packet,), certificate=certificate)
    return Checkpoint(epoch=epoch, lists=((bytes(20),), (bytes(20),)), banned=(), rounds=(opened,))


def test_the_last_checkpoints_are_kept_with_their_states_and_served_by_digest(store: Store) -> None:
    for epoch in range(4):
        store.put_checkpoint(a_checkpoint(epoch), b"state %d" % epoch)
    assert sorted(store.checkpoint_epochs()) == [2, 3]
    for epoch in (2, 3):
        assert store.checkpoint(epoch) == (a_checkpoint(epoch), b"state %d" % epoch)
        data = codec.encode(a_checkpoint(epoch))
        assert store.checkpoint_digest(epoch) == sha256(data).digest()
        assert store.blob(sha256(data).digest()) == data
        assert store.blob(sha256(b"state %d" % epoch).digest()) == b"state %d" % epoch
    assert store.checkpoint_digest(1) is None
    assert store.blob(sha256(b"state 1").digest()) is None


def test_the_heads_of_all_closed_rounds(store: Store) -> None:
    heads = {}
    for round in (4, 5):
        head, contents, certificate = closing(round, bytes(32))
        store.put_round(round, head, contents, certificate, [])
        heads[round] = head_digest(head)
    assert store.heads() == heads
