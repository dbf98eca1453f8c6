"""What one peer grants the rest of the world, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl import params


@dataclass(frozen=True, kw_only=True)
class Limits:
    connections_max: int = 300
    """In and out together; beyond it new ones are closed."""
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

    dial_s: float = 5.0
    dials_at_once_max: int = 8
    redial_s: float = 0.5
    redial_s_max: float = 30.0
    """A lost peer is dialled again after about redial_s, doubling up to redial_s_max."""
    defer_dial_s: float = 1.0
    """How long the peer with the larger id leaves the dial to the other, so that there is one connection, not two."""
    addresses_per_peer_max: int = 8
    known_peers_max: int = 512
    """Peers that discovery keeps dialling before the members are known."""
    lookup_s: float = 1.0
    lookup_s_max: float = 60.0
    """Lookups start lookup_s apart and double while they find nobody new."""
    questions_per_lookup_max: int = 16
    silent_s: float = 12.0
    """A connection that leaves a ping unanswered this long is closed.  py-libp2p pings every 30 s."""

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
    relay_circuit_s: float = 3600.0
    relay_circuit_bytes_max: int = 1 << 30
    """Both ways together.  After either the two ends connect anew."""
    relay_ask_s: float = 10.0
    """One question and its answer."""

    blob_attempt_s: float = 10.0
    blob_bytes_per_s_min: int = 1 << 20
    """One attempt at a blob may take blob_attempt_s plus its largest size at this rate."""

    close_s: float = 3.0
    """Closing takes no longer, whatever the other side does."""

    def __post_init__(self) -> None:
        assert self.message_bytes_max <= self.incoming_bytes_max
        assert self.served_streams_per_peer_max <= self.served_streams_max
        assert self.redial_s <= self.redial_s_max
        assert self.lookup_s <= self.lookup_s_max
