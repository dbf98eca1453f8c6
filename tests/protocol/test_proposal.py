"""What a fresh proposal may not leave out."""

from __future__ import annotations

import pytest

from p2pdfl.base.types import CommitEntry, Contents, UpdateEntry
from p2pdfl.protocol.proposal import Required, omits

from .members import HEAD, OTHER, an_epoch

ADDRESSES = an_epoch(4).addresses
REQUIRED = Required(frozenset({0, 1, 2}), frozenset({(0, HEAD), (1, HEAD)}), frozenset({ADDRESSES[3]}))


def some_contents(*, commits: tuple[int, ...] = (0, 1, 2), updates: tuple[int, ...] = (0, 1)) -> Contents:
    return Contents(
        commits=tuple(CommitEntry(member=member, body=OTHER) for member in commits),
        updates=tuple(UpdateEntry(member=member, update=HEAD) for member in updates),
        evidence=(),
        verdicts=(),
        banned=HEAD,
    )


def is_omitting(contents: Contents, *, banned: tuple[int, ...] = (3,)) -> bool:
    promised = {(entry.member, HEAD) for entry in contents.commits}
    return omits(contents, REQUIRED, promised=promised, banned={ADDRESSES[member] for member in banned})


def test_all_that_was_held_is_enough() -> None:
    assert not is_omitting(some_contents())


def test_more_than_was_held_is_welcome() -> None:
    assert not is_omitting(some_contents(commits=(0, 1, 2, 3), updates=(0, 1, 2)), banned=(2, 3))


@pytest.mark.parametrize("commits", [(0, 1), (0, 1, 3), ()])
def test_a_members_commit_may_not_be_left_out(commits: tuple[int, ...]) -> None:
    assert is_omitting(some_contents(commits=commits, updates=()))


def test_an_update_may_not_be_left_out() -> None:
    assert is_omitting(some_contents(updates=(0,)))


def test_an_update_that_the_named_commit_does_not_promise_may() -> None:
    """An equivocator's other COMMIT promises another one."""
    contents = some_contents(updates=(0,))
    assert not omits(contents, REQUIRED, promised={(0, HEAD)}, banned={ADDRESSES[3]})


def test_the_guilty_must_be_banned() -> None:
    assert is_omitting(some_contents(), banned=())
