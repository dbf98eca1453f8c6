"""What one peer grants the rest of the world, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl import params

# What the repaired library holds for one peer (adapter.py); the same for all hosts of a process.
STREAMS_PER_CONNECTION_MAX = 64
"""Opened by the other side.  An honest peer has one of gossip and a few of requests."""
WINDOW_BYTES_MAX = 4 << 20
"""Of one Yamux stream: unread bytes of it that a peer may make us hold.  200 Mbit/s at a round trip of 160 ms."""
PROTOCOL_NAME_BYTES_MAX = 1024
"""What go-multistream takes."""
PROTOCOL_PROPOSALS_MAX = 32
"""In one negotiation, with its greeting."""
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
    handshakes_max: int = 64
    """Inbound connections that have not finished their handshake; beyond it the oldest make room for new ones."""
    handshake_s: float = 5.0
    """For one connection's handshake, and for one stream to agree on its protocol.  Who dials waits no longer."""
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

    blob_attempt_s: float = 10.0
    blob_bytes_per_s_min: int = 1 << 20
    """One attempt at a blob may take blob_attempt_s plus its largest size at this rate."""

    close_s: float = 3.0
    """Closing takes no longer, whatever the other side does."""

    def __post_init__(self) -> None:
        assert self.message_bytes_max <= self.incoming_bytes_max
        assert self.served_streams_per_peer_max <= self.served_streams_max
        assert self.redial_s <= self.redial_s_max
        assert self.handshake_s >= 1  # py-libp2p rounds it down to seconds, and takes 0 for 30
        assert self.dht_streams_per_peer_max <= self.dht_streams_max
        assert self.lookup_s <= self.lookup_s_max
