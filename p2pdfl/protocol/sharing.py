"""The secret sharing under the beacon as a port: `crypto.pvss` is the real one.

A simulation of hundreds of members takes one without curve arithmetic, since dealing alone is O(n) multiplications
per member and round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from p2pdfl.base.types import Dealing, Digest, Entropy, Point, Scalar, Share
from p2pdfl.crypto import pvss
from p2pdfl.protocol.events import CheckCommits


class Sharing(Protocol):
    """As the functions of `crypto.pvss`."""

    def deal(self, context: Digest, keys: Sequence[Point], threshold: int, entropy: Entropy) -> Dealing: ...

    def find_invalid_dealings(
        self, dealings: Sequence[tuple[Digest, Dealing]], keys: Sequence[Point], threshold: int, entropy: Entropy
    ) -> set[int]: ...

    def sum_dealings(self, dealings: Sequence[Dealing]) -> tuple[Point, ...]: ...

    def decrypt(
        self, context: Digest, secret_key: Scalar, public_key: Point, summed: Point, entropy: Entropy
    ) -> Share: ...

    def find_invalid_shares(
        self, items: Sequence[tuple[Digest, Point, Point, Share]], entropy: Entropy
    ) -> set[int]: ...

    def recover(self, shares: Mapping[int, Point], threshold: int) -> Point: ...


def check_commits(effect: CheckCommits, entropy: Entropy, sharing: Sharing = pvss) -> frozenset[Digest]:
    """The bodies of the COMMITs whose dealing or share does not verify, culprits named one by one."""
    checks = effect.checks
    bad_dealings = sharing.find_invalid_dealings(
        [(check.dealing_context, check.commit.dealing) for check in checks], effect.keys, effect.threshold, entropy
    )
    shared = [
        (check.body, (check.share_context, check.holder_key, check.summed, check.commit.share))
        for check in checks
        if check.share_context is not None and check.summed is not None and check.commit.share is not None
    ]
    bad_shares = sharing.find_invalid_shares([item for _, item in shared], entropy)
    return frozenset(checks[index].body for index in bad_dealings) | frozenset(shared[index][0] for index in bad_shares)
