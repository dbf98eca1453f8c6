"""Who is told which ids, and who is asked for what."""

from __future__ import annotations

import secrets

import pytest
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from p2pdfl.net import Limits
from p2pdfl.net.gossip.message_cache import BEATS, SERVED_MAX, TOLD_PER_BEAT, IWantTracker, MessageCache, NotServed
from p2pdfl.net.gossip.missing_links import MissingLinks

LIMITS = Limits()
PEERS = [ID(b"peer %02d" % number) for number in range(20)]
AUTHOR = ID(b"author")
LINKED = set(PEERS)


def held(*numbers: int, limits: Limits = LIMITS, size: int = 10) -> MessageCache:
    made = MessageCache(entropy=secrets.token_bytes, limits=limits)
    for number in numbers:
        put(made, number, size=size)
    return made


def put(held: MessageCache, number: int, *, size: int = 10) -> bool:
    message = rpc_pb2.Message(from_id=AUTHOR.to_bytes(), seqno=number.to_bytes(8, "big"), data=bytes(size))
    return held.put(name(number), message, knowing=[AUTHOR], now_s=float(number))


def name(number: int) -> bytes:
    return AUTHOR.to_bytes() + number.to_bytes(8, "big")


def test_an_id_goes_to_a_few_in_a_few_beats_and_to_nobody_twice() -> None:
    one = held(0)
    told = [set(one.announce(set(PEERS), to_all=False, now_s=0)) for _ in range(BEATS + 2)]
    assert [len(peers) for peers in told] == [TOLD_PER_BEAT] * BEATS + [0, 0]
    assert len(set.union(*told)) == BEATS * TOLD_PER_BEAT


def test_two_draws_differ() -> None:
    draws = {frozenset(held(0).announce(set(PEERS), to_all=False, now_s=0)) for _ in range(20)}
    assert len(draws) > 1


def test_everybody_gets_a_turn() -> None:
    told: set[ID] = set()
    one = held(*range(10))
    for beat in range(10):
        one.put(name(100 + beat), rpc_pb2.Message(from_id=AUTHOR.to_bytes()), knowing=[], now_s=0)
        told |= set(one.announce(set(PEERS), to_all=False, now_s=0))
    assert told == set(PEERS)


def test_who_is_known_to_have_it_is_not_told() -> None:
    one = held(0)
    one.is_known_to(name(0), PEERS[0])
    assert set(one.announce({AUTHOR, *PEERS[:2]}, to_all=True, now_s=0)) == {PEERS[1]}


def test_a_message_that_somebody_lacked_is_announced_to_all() -> None:
    one = held(0, 1)
    (told, *_) = one.announce(set(PEERS), to_all=False, now_s=0)
    one.serve(name(0), told)
    announced = one.announce(set(PEERS), to_all=False, now_s=0)
    assert sum(name(0) in ids for ids in announced.values()) == len(PEERS) - TOLD_PER_BEAT
    assert sum(name(1) in ids for ids in announced.values()) <= TOLD_PER_BEAT


def test_serve__reject__what_was_not_announced_to_the_asker() -> None:
    with pytest.raises(NotServed, match="not announced"):
        held(0).serve(name(0), PEERS[0])


def test_serve__reject__the_same_message_again_and_again() -> None:
    one = held(0)
    one.announce({PEERS[0]}, to_all=True, now_s=0)
    for _ in range(SERVED_MAX):
        assert one.serve(name(0), PEERS[0]) is not None
    with pytest.raises(NotServed, match="again"):
        one.serve(name(0), PEERS[0])


def test_what_is_held_is_bounded_in_number_bytes_and_time() -> None:
    assert len(held(*range(10), limits=Limits(recent_messages_max=8))) == 4
    few = Limits(message_bytes_max=1_000, recent_bytes_max=4_500)
    assert len(held(*range(10), limits=few, size=1_000)) == 2
    one = held(0, 5)
    one.forget_old(LIMITS.recent_s)
    assert len(one) == 1
    assert one.serve(name(0), PEERS[0]) is None


def test_an_author_who_floods_leaves_the_others_room_and_gets_its_own_back() -> None:
    one = held(*range(20), limits=Limits(recent_messages_max=16))
    assert len(one) == 8
    other = rpc_pb2.Message(from_id=b"other", seqno=bytes(8))
    assert one.put(b"other" + bytes(8), other, knowing=[], now_s=20.0)
    one.forget_old(20.0 + LIMITS.recent_s)
    assert len(one) == 0
    assert sum(put(one, number) for number in range(20)) == 8


def test_the_next_announcer_is_asked_when_the_first_does_not_send() -> None:
    wanted = IWantTracker(limits=LIMITS)
    wanted.announced(name(0), PEERS[0], patience_s=0, now_s=0)
    assert wanted.ask(LINKED, 0) == ({PEERS[0]: [name(0)]}, [])
    wanted.announced(name(0), PEERS[1], patience_s=0, now_s=0)
    assert wanted.ask(LINKED, LIMITS.promise_s / 2) == ({}, [])
    assert wanted.ask(LINKED, LIMITS.promise_s) == ({PEERS[1]: [name(0)]}, [PEERS[0]])
    wanted.came(name(0))
    assert wanted.ask(LINKED, 3 * LIMITS.promise_s) == ({}, [])
    assert len(wanted) == 0


def test_what_may_still_come_from_its_author_is_not_asked_for_yet() -> None:
    wanted = IWantTracker(limits=LIMITS)
    wanted.announced(name(0), PEERS[0], patience_s=1, now_s=0)
    assert wanted.ask(LINKED, 0.9) == ({}, [])
    assert wanted.ask(LINKED, 1) == ({PEERS[0]: [name(0)]}, [])


def test_who_keeps_announcing_and_never_sends_is_not_listened_to_for_a_time() -> None:
    wanted = IWantTracker(limits=LIMITS)
    now_s = 0.0
    for number in range(LIMITS.broken_promises_max):
        assert wanted.announced(name(number), PEERS[0], patience_s=0, now_s=now_s) is None
        wanted.ask(LINKED, now_s)
        now_s += LIMITS.promise_s
        wanted.ask(LINKED, now_s)
    assert wanted.announced(name(99), PEERS[0], patience_s=0, now_s=now_s) == "announcement of who does not deliver"
    assert wanted.announced(name(99), PEERS[1], patience_s=0, now_s=now_s) is None
    wanted.ask(LINKED, now_s + LIMITS.broken_promises_s)
    assert wanted.announced(name(99), PEERS[0], patience_s=0, now_s=now_s) is None


def test_who_has_broken_promises_is_asked_last() -> None:
    wanted = IWantTracker(limits=LIMITS)
    wanted.announced(name(0), PEERS[0], patience_s=0, now_s=0)
    wanted.ask(LINKED, 0)
    wanted.ask(LINKED, LIMITS.promise_s)
    for peer in PEERS[:2]:
        wanted.announced(name(1), peer, patience_s=0, now_s=LIMITS.promise_s)
    assert wanted.ask(LINKED, LIMITS.promise_s) == ({PEERS[1]: [name(1)]}, [])


def test_who_has_gone_is_not_asked_and_not_blamed() -> None:
    wanted = IWantTracker(limits=LIMITS)
    for peer in PEERS[:3]:
        wanted.announced(name(0), peer, patience_s=0, now_s=0)
    assert wanted.ask(LINKED, 0) == ({PEERS[0]: [name(0)]}, [])
    assert wanted.ask({PEERS[2]}, 0.1) == ({PEERS[2]: [name(0)]}, [])
    assert wanted.ask(set(), 0.2) == ({}, [])
    assert len(wanted) == 0
    assert not wanted._waiting


def test_what_is_wanted_is_bounded_per_peer_and_in_all() -> None:
    limits = Limits(wanted_per_peer_max=3, wanted_messages_max=5)
    wanted = IWantTracker(limits=limits)
    refused = [wanted.announced(name(number), PEERS[0], patience_s=0, now_s=0) for number in range(4)]
    assert refused == [None, None, None, "too many announcements of a peer"]
    refused = [wanted.announced(name(10 + number), PEERS[1], patience_s=0, now_s=0) for number in range(3)]
    assert refused == [None, None, "too many announcements"]
    assert len(wanted) == 5


def test_an_announcer_is_free_again_when_the_message_came() -> None:
    wanted = IWantTracker(limits=Limits(wanted_per_peer_max=1))
    for number in range(3):
        assert wanted.announced(name(number), PEERS[0], patience_s=0, now_s=0) is None
        wanted.ask(LINKED, 0)
        wanted.came(name(number))


def test_two_at_most_are_sent_an_authors_messages_for_having_asked_and_for_a_time() -> None:
    missing_links = MissingLinks(limits=LIMITS)
    for peer in PEERS:
        missing_links.asked(peer, AUTHOR, 0)
    assert missing_links.askers_of(AUTHOR, 1) == set(PEERS[: LIMITS.askers_per_author_max])
    assert missing_links.askers_of(AUTHOR, LIMITS.gap_s) == set()
    missing_links.asked(PEERS[5], AUTHOR, LIMITS.gap_s)
    assert missing_links.askers_of(AUTHOR, LIMITS.gap_s) == {PEERS[5]}


def test_a_link_is_missing_while_an_author_is_heard_that_there_is_no_link_to() -> None:
    missing_links = MissingLinks(limits=LIMITS)
    assert not missing_links.is_any_missing(set(), 0)
    missing_links.heard_from_afar(AUTHOR, 0)
    assert missing_links.is_any_missing(set(PEERS), 1)
    assert not missing_links.is_any_missing({AUTHOR}, 1)
    assert not missing_links.is_any_missing(set(PEERS), LIMITS.gap_s)
