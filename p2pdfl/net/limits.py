"""What one peer grants the rest of the world, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl import params


@dataclass(frozen=True, kw_only=True)
class Limits:
    connections_max: int = 300
    """In and out together; beyond it new ones are closed."""
    strangers_max: int = 128
    """Connections of peers that are no members, who may need us to find others.  Beyond it one drawn by lot is closed:
    members always find room, and who brings many loses many."""
    handshakes_max: int = 64
    """Inbound ones at once; then the oldest is broken off."""
    connections_per_peer_max: int = 3
    """Two that dial each other at once have two; the third covers one that died unnoticed."""
    message_bytes_max: int = params.PACKET_BYTES_MAX
    """One gossip message."""
    incoming_messages_max: int = 1024
    incoming_bytes_max: int = 64 << 20
    """Gossip that waits for the node to take it.  Beyond either bound a message is dropped; resync brings it back."""
    outbound_messages_max: int = 256
    """Gossip queued for one slow peer."""
    seen_messages_max: int = 1 << 16
    """Message ids remembered: at 32 members and 10 messages a second each, 200 s."""
    gossip_streams_per_peer_max: int = 4
    """An honest peer has one, for a moment two while it reconnects."""

    served_streams_per_peer_max: int = 16
    served_streams_max: int = 256
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
    provider_keys_max: int = 256
    """Of other tasks, whose records we keep for others: 20 providers each."""
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

    blob_attempt_s: float = 10.0
    blob_bytes_per_s_min: int = 1 << 20
    """One attempt at a blob may take blob_attempt_s plus its largest size at this rate."""

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
        assert self.served_streams_per_peer_max <= self.served_streams_max
        assert self.redial_s <= self.redial_s_max
        assert 2 * self.look_s <= self.ping_s
        assert 2 * self.ping_s <= self.silent_s  # whichever way the jitter fell, an answer has time to come
        assert self.lookup_s <= self.lookup_s_max


DEFAULT = Limits()
# Every member of the largest task tested has all the connections it may have, whatever strangers do.
assert DEFAULT.strangers_max + DEFAULT.handshakes_max + 32 * DEFAULT.connections_per_peer_max < DEFAULT.connections_max
