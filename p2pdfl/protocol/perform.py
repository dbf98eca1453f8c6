"""The effects that are pure cryptography, performed: the same for the node, the simulator and the tests."""

from __future__ import annotations

from p2pdfl.crypto import pvss
from p2pdfl.protocol.events import CheckCommits
from p2pdfl.protocol.sharing import Sharing
from p2pdfl.types import Digest, Entropy


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
