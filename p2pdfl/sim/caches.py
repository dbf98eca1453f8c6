"""Pure functions remembered, or done faster, while a simulation runs: all n receivers of a message verify and decode
the same bytes, and nobody is there from whom a secret could leak.

Installed over the protocol's own names and taken away again, so production code knows nothing of it.  Each cache is
bounded and holds the very arguments it answers for, compared in full where they are not the same object.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from coincurve import PublicKey

from p2pdfl.base import codec
from p2pdfl.base.task import Task
from p2pdfl.base.types import Ballot, Commit, Digest, Entropy
from p2pdfl.crypto import envelope, group, pvss
from p2pdfl.crypto.envelope import Signer
from p2pdfl.protocol import (
    agreement,
    assignment,
    audit,
    checkpoint,
    context,
    epochs,
    evidence,
    ingress,
    proposal,
    proposal_pool,
    resync,
    round,
    run,
    sharing,
)
from p2pdfl.protocol import beacon as beacon_module
from p2pdfl.protocol.context import RoundContext
from p2pdfl.protocol.events import CheckCommits, DealingCheck
from p2pdfl.protocol.membership import EpochMembers
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.sim import chain, world

ENTRIES_MAX = 20_000
"""Of each cache: several rounds of 256 peers."""


class Cache:
    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._entries_max = entries_max

        self.get = self._entries.get

    def put(self, key: Hashable, value: Any) -> None:
        self._entries[key] = value
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)


def _by_identity(function: Callable[..., Any], cache: Cache) -> Callable[..., Any]:
    """Of an immutable first argument; the others are compared."""

    @wraps(function)
    def cached(subject: Any, *rest: Any) -> Any:
        entry = cache.get(id(subject))
        if entry is not None and entry[0] is subject and entry[1] == rest:
            return entry[2]
        value = function(subject, *rest)
        # the subject is kept, so its id stays its own
        cache.put(id(subject), (subject, rest, value))
        return value

    return cached


def _certificate_check(function: Callable[..., bool]) -> Callable[..., bool]:
    cache = Cache(2_000)

    def is_certificate(certificate: Any, domain: Any, task: Digest, epoch: Any) -> bool:
        entry = cache.get(id(certificate))
        if entry is not None and entry[0] is certificate and entry[1:4] == (domain, task, epoch.list_hash):
            return bool(entry[4])
        value = function(certificate, domain, task, epoch)
        cache.put(id(certificate), (certificate, domain, task, epoch.list_hash, value))
        return value

    return is_certificate


def _sign(function: Callable[..., bytes], signers: Cache) -> Callable[..., bytes]:
    """What was signed here needs no recovery; what was altered afterwards does."""

    def sign(signer: Signer, domain: Any, signed: Any) -> bytes:
        signature = function(signer, domain, signed)
        signers.put(signature, (domain, signed, signer.address))
        return signature

    return sign


def _recover(function: Callable[..., Any], cache: Cache) -> Callable[..., Any]:
    def recover(domain: Any, signed: Any, signature: bytes) -> Any:
        entry = cache.get(signature)
        if (
            entry is not None
            and (entry[1] is signed or entry[1] == signed)
            and (entry[0] is domain or entry[0] == domain)
        ):
            return entry[2]
        address = function(domain, signed, signature)
        cache.put(signature, (domain, signed, address))
        return address

    return recover


def _decode_payload(function: Callable[..., Any]) -> Callable[..., Any]:
    cache = Cache()

    def decode_payload(packet: Any) -> Any:
        key = (packet.envelope.body, packet.envelope.kind)
        entry = cache.get(key)
        if entry is not None and (entry[0] is packet.payload or entry[0] == packet.payload):
            return entry[1]
        payload = function(packet)
        cache.put(key, (packet.payload, payload))
        return payload

    return decode_payload


def _check_commits(function: Callable[..., frozenset[Digest]]) -> Callable[..., frozenset[Digest]]:
    """Each COMMIT by itself: batches differ from peer to peer, what is in them does not."""
    cache = Cache()

    def key_of(check: DealingCheck) -> Hashable:
        # the dealing's context has its holders' keys and the threshold in it, the share's context its holder
        return (check.body, check.dealing_context, check.share_context, check.summed)

    def check_commits(effect: CheckCommits, entropy: Entropy, sharing: Sharing = pvss) -> frozenset[Digest]:
        verdicts = {check.body: cache.get((sharing, key_of(check))) for check in effect.checks}
        unknown = tuple(check for check in effect.checks if verdicts[check.body] is None)
        if unknown:
            asked = CheckCommits(round=effect.round, checks=unknown, keys=effect.keys, threshold=effect.threshold)
            invalid = function(asked, entropy, sharing)
            for check in unknown:
                verdicts[check.body] = check.body not in invalid
                cache.put((sharing, key_of(check)), verdicts[check.body])
        return frozenset(body for body, is_valid in verdicts.items() if not is_valid)

    return check_commits


def _by_key(function: Callable[..., Any], cache: Cache, key_of: Callable[..., Hashable]) -> Callable[..., Any]:
    """key_of: of the function's arguments, whatever decides its value."""

    def cached(*arguments: Any, **named: Any) -> Any:
        key = key_of(*arguments, **named)
        value = cache.get(key)
        if value is None:
            value = function(*arguments, **named)
            cache.put(key, value)
        return value

    return cached


def _fixed_by(*, task: Digest, round: int, head: Digest, holders: Any, dealings: Any, sharing: Any) -> Hashable:
    """The head fixes which dealings."""
    return (task, round, head, holders.list_hash, sharing)


def _assigned_by(**named: Any) -> Hashable:
    return tuple(
        tuple(sorted(value)) if isinstance(value, frozenset | set | list | tuple) else value
        for _, value in sorted(named.items())
    )


def _checked_under(opened: RoundContext, task: Digest, member: int, body: Digest, commit: Commit) -> Hashable:
    """The parent fixes which dealings, the body which COMMIT."""
    return (task, opened.round, opened.parent, opened.epoch.list_hash, opened.dealt_to.list_hash, member, body)


def _next_after(task: Task, epoch: EpochMembers, registrations: Any, *, committed: Any, banned: Any) -> Hashable:
    last_round = task.last_round_of(epoch.epoch + 1)
    return (epoch.epoch, epoch.list_hash, last_round, registrations, frozenset(committed), frozenset(banned))


def _ballot_of(*, member: int, signature: bytes) -> Hashable:
    return (member, signature)


def _multiply(element: group.Element, secret: int) -> group.Element:
    """As `group.multiply`, not constant-time and several times faster: nothing is secret here."""
    product = PublicKey(group.encode(element)).multiply(group.encode_scalar(secret))
    return group.decode(product.format())


@contextmanager
def installed() -> Iterator[None]:
    """Simulations in it run several times faster and give the same bytes."""
    signers = Cache()
    """signature -> what it was for, and whose it is"""
    recover = _recover(envelope.recover, signers)
    decode = _decode_payload(codec.decode_payload)
    is_signed = _by_identity(codec.is_signed_payload, Cache())
    digest_of = _by_identity(codec.digest_of, Cache(2_000))
    head_digest = _by_identity(envelope.head_digest, Cache(2_000))
    packet_id = _by_identity(resync.packet_id, Cache())
    cached_keys = [_by_identity(keys, Cache(2_000)) for keys in (proposal.commit_keys, proposal.update_keys)]
    certificate_check = _certificate_check(agreement.is_certificate)
    patches: list[tuple[Any, str, Any]] = [
        *((module, "recover", recover) for module in (agreement, audit, chain, checkpoint, evidence, ingress)),
        (Signer, "sign", _sign(Signer.sign, signers)),
        (group, "multiply", _multiply),
        *((module, "decode_payload", decode) for module in (checkpoint, ingress)),
        (ingress, "is_signed_payload", is_signed),
        *((module, "head_digest", head_digest) for module in (checkpoint, proposal, proposal_pool, round, run)),
        (resync, "packet_id", packet_id),
        (agreement, "Ballot", _by_key(Ballot, Cache(), _ballot_of)),
        *((module, "digest_of", digest_of) for module in (proposal, proposal_pool)),
        *((module, keys.__name__, keys) for module in (proposal, proposal_pool) for keys in cached_keys),
        *((module, "is_certificate", certificate_check) for module in (proposal, round)),
        (RoundContext, "check_of", _by_key(RoundContext.check_of, Cache(2_000), _checked_under)),
        (context, "fix_dealings", _by_key(beacon_module.fix_dealings, Cache(64), _fixed_by)),
        (epochs, "compute_next_epoch", _by_key(epochs.compute_next_epoch, Cache(64), _next_after)),
        (context, "compute_assignment", _by_key(assignment.compute_assignment, Cache(256), _assigned_by)),
        (world, "check_commits", _check_commits(sharing.check_commits)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, value in patches:
        setattr(module, name, value)
    # hardly anything here is a cycle, and looking for some costs a tenth of the time
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()
        for module, name, value in before:
            setattr(module, name, value)
