"""What one peer grants the rest of the world, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl.base import params
from p2pdfl.net.limits.rates import PASS_ON, Rate

# What the repaired library holds for one peer (libp2p/adapter.py); the same for all hosts of a process.
STREAMS_PER_CONNECTION_MAX = 96
"""Opened by the other side.  An honest peer has one of gossip and a few of requests, and one for each circuit."""
WINDOW_BYTES_MAX = 4 << 20
"""Of one Yamux stream: unread bytes of it that a peer may make us hold.  200 Mbit/s at a round trip of 160 ms."""
PROTOCOL_NAME_BYTES_MAX = 1024
"""What go-multistream takes."""
PROTOCOL_PROPOSALS_MAX = 32
"""In one negotiation, with its greeting."""
PEER_ID_BYTES_MAX = 64
"""One of an ed25519 key has 38."""
ADDRESS_BYTES_MAX = 128
ADDRESS_RECORD_BYTES_MAX = 1024
"""A peer's signed addresses; one of eight IP addresses has about 350."""
DHT_MESSAGE_BYTES_MAX = 48 << 10
"""20 peers, each with eight addresses and a signed record, all of the largest size: what our own answers may have."""
assert 20 * (8 * (ADDRESS_BYTES_MAX + 4) + ADDRESS_RECORD_BYTES_MAX + 64) < DHT_MESSAGE_BYTES_MAX
DHT_PROVIDED_KEYS_MAX = 256
DHT_PROVIDER_ADDRESSES_MAX = 8
"""Provider records kept for others: keys, and addresses of one provider.  A key has at most 20 providers."""
GOODBYE_S = 1.0
"""For the last frame of a connection that we close."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    connections_max: int = 300
    """In and out together; beyond it the oldest of strangers make room for new ones."""
    strangers_max: int = 128
    """Connections of peers that are no members, who may need us to find others.  Beyond it one drawn by lot is closed:
    members always find room, and who brings many loses many."""
    handshakes_max: int = 64
    """Inbound connections that have not finished their handshake; beyond it the oldest make room for new ones."""
    handshake_s: float = 5.0
    """For one connection's handshake, and for one stream to agree on its protocol.  Who dials waits no longer."""
    connections_per_peer_max: int = 3
    """Two that dial each other at once have two; the third covers one that died unnoticed."""
    known_addresses_max: int = 1000
    """Peers whose addresses are kept."""
    dht_stream_s: float = 5.0
    dht_streams_per_peer_max: int = 2
    dht_streams_max: int = 64
    """Questions of the DHT being answered.  An honest peer asks one at a time."""
    message_bytes_max: int = params.PACKET_BYTES_MAX
    """One gossip message."""
    incoming_messages_max: int = 1024
    incoming_bytes_max: int = 64 << 20
    """Gossip that waits for the node to take it.  Beyond either bound, or its author's share (`inbox`), a message is
    dropped; resync brings it back."""
    outbound_messages_max: int = 256
    """Gossip queued for one slow peer."""
    seen_messages_max: int = 1 << 16
    """Message ids remembered: at 32 members and 10 messages a second each, 200 s."""
    outbound_bytes_max: int = 16 << 20
    """Of the same; frames are shared by the peers that they wait for."""

    beat_s: float = 0.4
    """Between announcements of what was heard, while there is something new; half to one and a half of it."""
    recent_messages_max: int = 4096
    recent_bytes_max: int = 32 << 20
    recent_s: float = 10.0
    """Messages kept to be sent to who asks, each author's share of them: 12 members' 64 KB a round are 1 MB."""
    ids_per_beat_max: int = 1024
    """Ids in announcements and questions taken from one peer: 32 members at 80 messages a second each."""
    wanted_messages_max: int = 4096
    wanted_per_peer_max: int = 512
    """Announced messages that have not come, at most 100 bytes each."""
    announcers_max: int = 4
    """Announcers remembered for one message."""
    late_s: float = 1.5
    """How long an announced message may still come from its author, if there is a link to it."""
    promise_s: float = 3.0
    """How long who was asked may take, before another is.  go-libp2p waits as long."""
    broken_promises_max: int = 8
    broken_promises_s: float = 60.0
    """Who announced and did not send in as many beats is not listened to until this time is over."""
    askers_per_author_max: int = 2
    gap_s: float = 60.0
    """For how long a missing link is thought to stay missing."""

    gossip_streams_per_peer_max: int = 4
    """An honest peer has one, for a moment two while it reconnects."""

    # --- what one peer may send in the long run, and at once (`rates`) ---
    gossip_messages: Rate = Rate(per_s=512, burst=2048)
    gossip_bytes: Rate = Rate(per_s=16 << 20, burst=64 << 20)
    """Of one peer, its own messages and what it passes on.  The busiest honest one is the only link between two
    halves of 64 members: 64 members x 6 messages a round, and 64 bodies of 64 KB or 16 of 1 MB at once."""
    own_messages: Rate = Rate(per_s=64, burst=512)
    """Messages that a peer sends as their author, and as many that others pass on for it.  A round takes about six, a
    restart sends them again."""
    streams: Rate = Rate(per_s=256, burst=1024)
    """New streams of one peer, and so its requests: pulling 64 KB a stream, that is 16 MB/s."""
    served_bytes: Rate = Rate(per_s=32 << 20, burst=256 << 20)
    """Replies to one peer; beyond it they wait."""
    handshakes: Rate = Rate(per_s=16, burst=256)
    """New connections from one IP address that no member is known at; each costs 10 ms of CPU.  64 peers of one machine
    may start at once."""
    handshakes_of_members: Rate = Rate(per_s=64, burst=512)
    """The same from an address that a member was seen at, which others may share.  More than members need: each dials
    again after redial_s at the earliest."""
    handshakes_of_refused: Rate = Rate(per_s=0.5, burst=4)
    """The same from an address that is refused: a member may be behind it, and shows only in the handshake."""

    # --- what may be open at once ---
    streams_per_peer_max: int = 96
    negotiations_per_peer_max: int = 32
    """Of these, such as have not agreed on a protocol yet."""
    streams_max: int = 2048
    """Opened by peers; py-libp2p stops at 10,000 and then keeps everybody waiting."""

    # --- blame (`peer_score`) ---
    offence_half_life_s: float = 120.0
    refuse_s: float = 30.0
    refuse_s_max: float = 600.0
    """A refusal starts at refuse_s and doubles for who is refused again, up to refuse_s_max."""
    forgive_s: float = 3600.0
    """Since a refusal ended: the next one starts at refuse_s again."""
    tracked_peers_max: int = 4096
    """Peers besides the members whose offences are remembered, and as many addresses."""
    bad_strangers_per_address: int = 8
    """So many strangers refused within bad_strangers_half_life_s, about, and their IP address is refused."""
    bad_strangers_half_life_s: float = 600.0

    served_streams_per_peer_max: int = 16
    served_streams_max: int = 256
    followers_max: int = 0
    """Strangers that may follow the topic (`listeners`); what a follower is sent costs as much as a member."""
    follower_outbound_messages_max: int = 64
    """Gossip queued for one follower, if that is less than for a member: a COMMIT and a body of each of 32 members.
    Beyond it, it misses messages."""
    follower_pause_s: float = 0.25
    """Between two requests of one follower; an answer from the disk may be 4 MB long."""
    served_bytes_max: int = 1 << 30
    """Replies held in memory until they are sent.  One alone may have any length."""
    serve_s: float = 60.0
    """From the acceptance of a request's stream to the last byte of the reply."""

    dial_s: float = 10.0
    """One address, TCP to Yamux."""
    dials_at_once_max: int = 3
    """A handshake costs 20 ms of CPU on both sides together; when 32 peers each begin eight at once on two cores, all
    run into dial_s and begin anew."""
    redials_at_once_max: int = 8
    """Of those that failed before: they mostly wait for nobody."""
    redial_s: float = 0.5
    redial_s_max: float = 10.0
    """A lost peer is dialled again after about redial_s, doubling up to redial_s_max."""
    defer_dial_s: float = 2.0
    """How long the peer with the larger id leaves the dial to the other, so that there is one connection, not two."""
    addresses_per_peer_max: int = 8
    known_peers_max: int = 512
    """Peers that discovery keeps dialling before the members are known."""
    lookup_s: float = 1.0
    lookup_s_max: float = 60.0
    """Lookups start lookup_s apart and double while they find nobody new."""
    lookup_missing_s: float = 8.0
    """Up to this only, while members are missing: two halves that meet are to be one within a minute."""
    questions_per_lookup_max: int = 16
    provide_first_s: float = 30.0
    provide_s: float = 1800.0
    """Between provider records of the task: provide_first_s at first, doubling up to provide_s.  They live 48 h."""
    provider_questions_max: int = 6
    provider_records_at: int = 3
    """Peers that our record is left at."""
    remember_s: float = 10.0
    """How old the file of remembered peers may be when something has changed."""
    deaf_s: float = 8.0
    deaf_s_max: float = 300.0
    """A connected peer of the task that does not follow the topic for so long, doubling each time, is dialled anew."""
    look_s: float = 0.5
    """How often connections are looked at for silence."""
    ping_s: float = 2.5
    """After about so long a silence, half to one and a half of it, a ping is sent."""
    silent_s: float = 7.5
    """After so long a silence the connection is closed: who is lost is noticed within 10 s, and who is busy for 3 s
    is kept."""

    dial_back_s: float = 5.0
    """One address of one peer that asks whether it can be reached."""
    dial_back_pause_s: float = 20.0
    """At least between two questions of one peer that are answered.  Our own start here and double."""
    dial_backs_at_once_max: int = 4
    dial_back_peers: int = 3
    """Whom we ask: one tells the truth even if two do not."""
    reachability_s: float = 600.0
    """Between our own questions in the end."""

    relay_reservations_max: int = 32
    """Peers that can be reached through this one, if it relays."""
    relay_reservation_s: float = 600.0
    """Renewed after half of it."""
    relay_circuits_max: int = 128
    relay_circuits_per_peer_max: int = 64
    """One end's; a peer behind a relay has one with each member that cannot reach it otherwise."""
    relay_asks_per_peer_max: int = 4
    """Questions under way, besides circuits."""
    relay_connects: Rate = Rate(per_s=1, burst=64)
    """Circuits that one peer opens; each costs who is called a handshake.  After an outage of the relay, one to each
    that can be reached through it."""
    relay_circuit_s: float = 3600.0
    relay_circuit_bytes_max: int = 1 << 30
    """Both ways together.  After either the two ends connect anew."""
    relay_ask_s: float = 10.0
    """One question and its answer."""

    blob_attempt_s: float = 10.0
    blob_bytes_per_s_min: int = 1 << 20
    """One attempt at a blob may take blob_attempt_s plus its largest size at this rate.  What came is kept for the
    next."""
    chunk_s: float = 10.0
    """For a stream to open, and from one chunk of a holder to its next: 128 KB at 13 KB/s."""
    chunk_requests_per_holder_max: int = 2
    """Chunks that a holder has under way, so that the line is never idle; what one that turns liar can waste."""
    hedge_s: float = 0.5
    """Another holder is asked so long after the first, the next after twice that, and so on; at once when none is
    left.  A holder on a good path is done by then with 1 MB, so that all others are left in peace."""
    chunk_steal_s: float = 0.5
    """So long a chunk is waited for before an idle holder is asked for it too."""
    holders_at_once_max: int = 8
    pulls_per_holder_max: int = 8
    """Blobs that are pulled from one holder at once: half of what it serves to a peer by default."""
    partial_blobs_bytes_max: int = params.UPDATE_BYTES_MAX
    """Chunks of blobs whose last attempt did not get to the end."""
    served_blobs_bytes_max: int = 64 << 20
    """Blobs kept in memory because they were asked for last; one longer than this is kept alone."""
    served_states_bytes_max: int = 1 << 20
    """Hash states of blobs that were served, 32 bytes for 128 KB: of 4 GB."""
    chunks_per_stream_max: int = 4096
    """Twice the chunks of the longest update."""

    restart_s: float = 0.5
    restart_s_max: float = 10.0
    """When py-libp2p fails as a whole it is started anew after about restart_s, doubling."""
    restarts_max: int = 6
    restarts_within_s: float = 300.0
    """More restarts than restarts_max within so long are no accident: the node ends, with the reason."""

    close_s: float = 3.0
    """Closing takes no longer, whatever the other side does."""

    def __post_init__(self) -> None:
        assert self.message_bytes_max <= self.incoming_bytes_max
        assert self.message_bytes_max < self.outbound_bytes_max
        assert self.message_bytes_max <= self.recent_bytes_max
        # Who is told last and waits for the author before it asks is still served.
        assert self.recent_s / 2 > self.late_s + 1.5 * self.beat_s
        # an honest peer passes on half of what it may send: also that has room for the longest message
        assert self.message_bytes_max < PASS_ON * self.gossip_bytes.burst
        assert self.negotiations_per_peer_max <= self.streams_per_peer_max <= self.streams_max
        assert self.served_streams_per_peer_max <= self.streams_per_peer_max
        assert self.gossip_streams_per_peer_max <= self.streams_per_peer_max
        assert self.refuse_s <= self.refuse_s_max
        assert self.served_streams_per_peer_max <= self.served_streams_max
        assert self.redial_s <= self.redial_s_max
        assert 2 * self.look_s <= self.ping_s
        assert 2 * self.ping_s <= self.silent_s  # whichever way the jitter fell, an answer has time to come
        assert self.handshake_s >= 1  # py-libp2p rounds it down to seconds, and takes 0 for 30
        assert self.dht_streams_per_peer_max <= self.dht_streams_max
        assert self.lookup_s <= self.lookup_s_max


DEFAULT = Limits()
# Every member of the largest task tested has all the connections it may have, whatever strangers do.
assert DEFAULT.strangers_max + DEFAULT.handshakes_max + 32 * DEFAULT.connections_per_peer_max < DEFAULT.connections_max
# Who has all the circuits that it may have still gossips, asks and is asked over the same connection.
assert DEFAULT.relay_circuits_per_peer_max + DEFAULT.relay_asks_per_peer_max + sum(
    (DEFAULT.served_streams_per_peer_max, DEFAULT.gossip_streams_per_peer_max, DEFAULT.dht_streams_per_peer_max)
) <= min(DEFAULT.streams_per_peer_max, STREAMS_PER_CONNECTION_MAX)
