"""Every bound and default, with its unit and where it comes from.

A task may set what peers must agree on (`task.Task`); what stands here are its defaults, and the limits that
protect a single peer.
"""

# --- sizes -----------------------------------------------------------------------------------------------------
MEMBER_COUNT_MAX = 256
"""Members of one epoch; the contract's bitmap has 256 bits."""
VIEW_COUNT_MAX = 64
"""Skip certificates in one proposal.  Timers double per view, so a round never gets here."""
PAYLOAD_BYTES_MAX = 1 << 20
"""Encoded payload of one envelope.  A COMMIT has 98 bytes per member (5.6 KB at 64), a PROPOSE up to
64 skip certificates."""
PACKET_BYTES_MAX = PAYLOAD_BYTES_MAX + 512
UPDATE_INLINE_BYTES_MAX = 64 << 10
"""Update bytes gossiped inline; larger ones are announced and pulled (a stream costs a tenth per delivered MB)."""
UPDATE_BYTES_MAX = 256 << 20
ZSTD_LEVEL = 1
"""Codes hardly repeat, so the entropy coder does it all: levels 3 and 9 come out longer (docs/adr/0014).  A peer may
choose another; what it sends decodes to the same."""
ZSTD_WINDOW_BYTES_MAX = 8 << 20
"""What RFC 8878 says that every decoder should support; no level below 20 needs more."""

# --- quorums ---------------------------------------------------------------------------------------------------


def quorum(member_count: int) -> int:
    """q = floor(2n/3) + 1 (DESIGN 2)."""
    return 2 * member_count // 3 + 1


def threshold(member_count: int) -> int:
    """PVSS threshold t = floor(n/2), 1 for n < 4 (DESIGN 2)."""
    return member_count // 2 if member_count >= 4 else 1


def jury(member_count: int) -> int:
    """Equal JUDGEs that make a verdict: floor(n/2), at least 1."""
    return max(1, member_count // 2)


# --- rounds ----------------------------------------------------------------------------------------------------
EPOCH_ROUNDS_MIN = 3
VERDICT_ROUNDS = 4
"""Rounds within which an accusation must become a listed verdict, else it lapses."""
AUDIT_TOLERANCE = 0.02
"""Relative L2 between decoded payloads (measured: 10x below useful attacks, 15x above the worst noise)."""
AUDIT_AGREEMENT = 0.01
"""Relative L2 up to which, under profile `tolerant`, jurors find an accusation false."""
AUDIT_NOISE_MAX = 0.004
"""Relative L2 by which rounding may change an update that an audit under `tolerant` convicts anybody of."""
VERDICT_ROUNDS_MAX = 16
AUDIT_LAG = 2
"""beacon[r] assigns audits of round r - AUDIT_LAG."""
BEACON_LAG = 2
"""beacon[r] comes from the dealings of round r - BEACON_LAG."""
ABSENT_ROUNDS = 3
"""A member whose COMMIT is in none of the last ABSENT_ROUNDS heads is left out of the next epoch."""


def checkpoint_rounds(verdict_rounds: int) -> int:
    """Closed rounds in a checkpoint: those whose cases may still be open, those audited in them, and those that the
    beacons of the audited ones come from."""
    return verdict_rounds + AUDIT_LAG + BEACON_LAG


CHECKPOINT_ROUNDS_MAX = checkpoint_rounds(VERDICT_ROUNDS_MAX)
CHECKPOINT_LISTS_MAX = -(-(CHECKPOINT_ROUNDS_MAX + VERDICT_ROUNDS_MAX) // EPOCH_ROUNDS_MIN) + 1
"""Member lists in a checkpoint: of the rounds whose members its rounds may name, and the next one."""
CHECKPOINTS_KEPT = 2
"""The last is asked for once it is anchored, which may take longer than the next epoch."""
CHECKPOINT_REQUEST_BYTES_MAX = 64
CHECKPOINT_REPLY_BYTES_MAX = 64
STATE_BYTES_MAX = 512 << 20
"""Of a state that is kept for others to start from, 16 bytes for each parameter.  A longer one is not kept."""

# --- aggregation -----------------------------------------------------------------------------------------------
GEOMETRIC_MEDIAN_STEPS = 64
SMOOTHING = 1e-6
"""Least distance in Weiszfeld's steps, as a part of the radius that holds a majority (Pillutla et al. 2022: 1e-6)."""
CENTERED_CLIP_STEPS = 20
"""Each at least halves what is missing while half of the updates are within the radius."""
MDA_STEPS_MAX = 50_000
"""In the search for the subset of least diameter: 1 s for 64 updates, which take some 1,000, and 3 s for 256."""

# --- timers, milliseconds on a monotonic clock -------------------------------------------------------------------
COMMIT_MS = 10_000
REVEAL_MS = 5_000
GRACE_MS = 1_000
"""How much longer than the deadline a leader waits before it proposes without what is missing."""
VIEW_MS = 6_000
"""View 0's timer; doubles per view."""
VIEW_DOUBLINGS_MAX = 6
VIEW_LEVEL_MAX = 3
"""Doublings of view 0's timer that a round takes over from the ones before (ADR 12): a first leader that is dead costs
at most 8 times VIEW_MS, 48 s, and three more views reach the longest timer."""
NEWEST_BLOCK_VIEWS = 2
"""Views in which a leader names the newest chain block that it knows; later ones the parent head's (ADR 3)."""
VIEWS_AHEAD_MAX = 8
"""Votes and proposals for views further ahead than this are not kept."""
RESYNC_MS = 1_500
HURRY_MS = 200
"""Until the next resync once others are seen to be ahead."""
ANCHOR_STAGGER_MS = 3_000
"""Between the members who send the same chain transaction if nobody before them got it through."""

# --- buffers ---------------------------------------------------------------------------------------------------
EARLY_MESSAGES_PER_MEMBER_MAX = 16
"""Messages of round r+1 kept while round r is open, per member."""
RESYNC_HAVE_MAX = 8_192
RESYNC_REQUEST_BYTES_MAX = 20 * RESYNC_HAVE_MAX + 64
RESYNC_REPLY_MESSAGES_MAX = 512
RESYNC_REPLY_CERTIFICATES_MAX = 2 * VIEW_COUNT_MAX + 1
"""A notarization and a skip certificate per view, and the round's own: each costs the asker a quorum of recoveries."""
RESYNC_REPLY_BYTES_MAX = 4 << 20
"""Of packets; certificates come on top."""
RESYNC_FRAME_BYTES_MAX = 8 << 20
HISTORY_ROUNDS = VERDICT_ROUNDS + AUDIT_LAG + 2
"""Closed rounds kept in memory: what an audit, its verdict and a resync can still ask about."""

NODE_EVENTS_MAX = 64
"""Events that wait for the node's loop, packets of up to PACKET_BYTES_MAX among them; their senders wait in turn."""
ORPHAN_BODIES_PER_MEMBER_MAX = 2
"""Update bodies of one member kept in memory although no verified COMMIT names them."""
RESYNC_TIMEOUT_S = 10.0
RESYNCS_AT_ONCE_MAX = 3
"""Members asked at the same time, so that one that never answers holds up nobody."""
ROUND_REPORTS_MAX = 8
"""Closed rounds whose state waits in memory to be evaluated."""

# --- chain -----------------------------------------------------------------------------------------------------
DEPOSIT_WEI = 10**18
VERDICT_SLASH_WEI = 5 * 10**17
EQUIVOCATION_SLASH_WEI = 10**18
REPORTER_SHARE_BPS = 1_000
COOLDOWN_BLOCKS = 20
STALL_BLOCKS = 1_000
CHAIN_POLL_MS = 500
"""Between looks at the registry while registration is open."""
CHAIN_RETRY_S = 1.0
CHAIN_RETRY_S_MAX = 15.0
"""So soon after an outage the chain is asked again, however long that was; it also bounds what a member asks of a chain
that is out of reach, which costs the chain nothing."""
CHAIN_WATCH_S = 10.0
"""Between looks at the registry while the rounds go on; late registrants are let into the network then."""
CHAIN_THREADS_MAX = 8
"""Questions and transactions under way at once; a hanging node holds each for up to a minute."""
CHAIN_REFUSALS_MAX = 4
"""How often a transaction is refused before this member leaves it to the others."""
CHAIN_FINISH_S = 60.0
"""How long a node that has closed its last round waits for its transactions before it reports its result."""
CHAIN_SNAPSHOTS_MAX = 64
"""Registries of confirmed blocks kept to check which list a head names."""

assert EPOCH_ROUNDS_MIN >= 3, "next_members is fixed one round before the last and needs a round before that"
assert AUDIT_TOLERANCE * (1 - 2 * AUDIT_NOISE_MAX) - 2 * AUDIT_NOISE_MAX > AUDIT_AGREEMENT, (
    "what is guilty on one machine must not be an agreement on another (ADR 15)"
)
assert VERDICT_SLASH_WEI <= EQUIVOCATION_SLASH_WEI <= DEPOSIT_WEI
assert UPDATE_INLINE_BYTES_MAX <= PAYLOAD_BYTES_MAX
assert VIEW_LEVEL_MAX <= VIEW_DOUBLINGS_MAX, "what is carried over is among the doublings, not on top of them"
