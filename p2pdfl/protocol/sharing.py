"""The secret sharing under the beacon as a port: `crypto.pvss` is the real one.

A simulation of hundreds of members takes one without curve arithmetic, since dealing alone is O(n) multiplications
per member and round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from p2pdfl.types import Dealing, Digest, Entropy, Point, Scalar, Share


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
