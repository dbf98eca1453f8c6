"""What one peer grants the rest of the world, and how long it waits for it."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdfl import params
from p2pdfl.net.rates import PASS_ON, Rate


@dataclass(frozen=True, kw_only=True)
class Limits:
    connections_max: int = 300
    """In and out together; beyond it new ones are closed."""
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
    gossip_streams_per_peer_max: int = 4
    """An honest peer has one, for a moment two while it reconnects."""

    # --- what one peer may send in the long run, and at once (`rates`) ---
    gossip_messages: Rate = Rate(per_s=512, burst=2048)
    gossip_bytes: Rate = Rate(per_s=16 << 20, burst=64 << 20)
    """Of one peer, its own messages and what it passes on.  The busiest honest one is the only link between two
    halves of 64 members: 64 members x 6 messages a round, and 64 bodies of 64 KB or 16 of 1 MB at once."""
    own_messages: Rate = Rate(per_s=64, burst=512)
    """Messages that a peer sends as their author.  A round takes about six, a restart sends them again."""
    streams: Rate = Rate(per_s=256, burst=1024)
    """New streams of one peer, and so its requests: pulling 64 KB a stream, that is 16 MB/s."""
    served_bytes: Rate = Rate(per_s=32 << 20, burst=256 << 20)
    """Replies to one peer; beyond it they wait."""
    handshakes: Rate = Rate(per_s=16, burst=256)
    """New connections from one IP address that no member is known at; each costs 10 ms of CPU.  64 peers of one machine
    may start at once."""
    handshakes_of_refused: Rate = Rate(per_s=0.5, burst=4)
    """The same from an address that is refused: a member may be behind it, and shows only in the handshake."""

    # --- what may be open at once ---
    connections_per_peer_max: int = 4
    """An honest peer has one, two where both dialled at once, and as many more as died unnoticed."""
    streams_per_peer_max: int = 64
    negotiations_per_peer_max: int = 32
    """Of these, such as have not agreed on a protocol yet."""
    streams_max: int = 2048
    """Opened by peers; py-libp2p stops at 10,000 and then keeps everybody waiting."""

    # --- blame (`blame`) ---
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
    served_bytes_max: int = 1 << 30
    """Replies held in memory until they are sent.  One alone may have any length."""
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
        # an honest peer passes on half of what it may send: also that has room for the longest message
        assert self.message_bytes_max < PASS_ON * self.gossip_bytes.burst
        assert self.negotiations_per_peer_max <= self.streams_per_peer_max <= self.streams_max
        assert self.served_streams_per_peer_max <= self.streams_per_peer_max
        assert self.gossip_streams_per_peer_max <= self.streams_per_peer_max
        assert self.refuse_s <= self.refuse_s_max
        assert self.served_streams_per_peer_max <= self.served_streams_max
        assert self.redial_s <= self.redial_s_max
        assert self.lookup_s <= self.lookup_s_max
