"""Any t shares give one point, fewer give none, and whoever tampers is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
from coincurve import PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pdfl.base import params
from p2pdfl.base.types import Address, Dealing, Digest, Entropy, Point, Share
from p2pdfl.crypto import dleq, group, pvss, transcript
from p2pdfl.crypto.pvss import TooFewShares

ENTROPY = random.Random(1).randbytes
TASK = b"t" * 32
HEAD = b"h" * 32
ROUND = 7

Values = tuple[bytes, ...]
Item = tuple[Digest, Point, Point, Share]


def address(index: int) -> Address:
    return bytes([index]) * 20


def point_of(secret: int) -> Point:
    return group.public_key(group.encode_scalar(secret))


@dataclass(frozen=True, kw_only=True)
class Holders:
    threshold: int
    secrets: list[bytes]
    keys: list[bytes]

    @classmethod
    def make(cls, count: int, threshold: int) -> Holders:
        secrets = [group.encode_scalar(group.random_scalar(ENTROPY)) for _ in range(count)]
        return cls(threshold=threshold, secrets=secrets, keys=[group.public_key(secret) for secret in secrets])

    def dealing_context(self, dealer: int, round: int = ROUND) -> Digest:
        return pvss.dealing_context(TASK, round, address(dealer), self.keys, self.threshold)

    def deal(self, dealer: int, entropy: Entropy = ENTROPY) -> tuple[Digest, Dealing]:
        context = self.dealing_context(dealer)
        return context, pvss.deal(context, self.keys, self.threshold, entropy)

    def find_invalid(self, dealings: Sequence[tuple[Digest, Dealing]]) -> set[int]:
        return pvss.find_invalid_dealings(dealings, self.keys, self.threshold, ENTROPY)

    def share_context(self, index: int, round: int = ROUND, head: Digest = HEAD) -> Digest:
        return pvss.share_context(TASK, round, head, address(index), index, len(self.keys), self.threshold)

    def decrypt(self, summed: Sequence[Point]) -> list[Item]:
        """Every holder's item for `find_invalid_shares`."""
        return [
            (
                self.share_context(index),
                self.keys[index],
                summed[index],
                pvss.decrypt(self.share_context(index), self.secrets[index], self.keys[index], summed[index], ENTROPY),
            )
            for index in range(len(self.keys))
        ]


H = Holders.make(5, 2)
DEALINGS = [H.deal(dealer) for dealer in range(5)]
SUMMED = pvss.sum_dealings([dealing for _, dealing in DEALINGS])
ITEMS = H.decrypt(SUMMED)


# --- the honest path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_any_threshold_of_shares_recovers_the_same_point(count: int) -> None:
    holders = Holders.make(count, params.threshold(count))
    summed = pvss.sum_dealings([holders.deal(dealer)[1] for dealer in range(2)])
    shares = {index: item[3].decrypted for index, item in enumerate(holders.decrypt(summed))}
    subsets = combinations(shares, holders.threshold)
    points = {pvss.recover({index: shares[index] for index in subset}, holders.threshold) for subset in subsets}
    assert len(points) == 1


def test_the_point_is_the_sum_of_the_dealt_secrets() -> None:
    drawn: list[bytes] = []

    def recording(length: int) -> bytes:
        drawn.append(ENTROPY(length))
        return drawn[-1]

    secret = 0
    dealings = []
    for dealer in range(3):
        drawn.clear()
        dealings.append(H.deal(dealer, recording)[1])
        secret += group.nonzero_scalar(drawn[0])
    items = H.decrypt(pvss.sum_dealings(dealings))
    point = pvss.recover({index: item[3].decrypted for index, item in enumerate(items)}, H.threshold)
    assert point == point_of(secret % group.ORDER)


def test_more_shares_than_needed_give_the_same_point() -> None:
    shares = {index: item[3].decrypted for index, item in enumerate(ITEMS)}
    few = {index: shares[index] for index in (1, 4)}
    assert pvss.recover(shares, 2) == pvss.recover(few, 2)


def test_fewer_than_threshold_shares_do_not_recover_the_point() -> None:
    share = {3: ITEMS[3][3].decrypted}
    with pytest.raises(TooFewShares, match="1 of 2"):
        pvss.recover(share, 2)
    with pytest.raises(TooFewShares, match="0 of 1"):
        pvss.recover({}, 1)


def test_below_the_degree_interpolation_gives_another_point() -> None:
    shares = {index: item[3].decrypted for index, item in enumerate(ITEMS)}
    assert pvss.recover(shares, 1) != pvss.recover(shares, 2)


def test_honest_dealings_and_shares_verify() -> None:
    assert H.find_invalid(DEALINGS) == set()
    assert pvss.find_invalid_shares(ITEMS, ENTROPY) == set()


def test_nothing_to_verify_is_valid() -> None:
    assert H.find_invalid([]) == set()
    assert pvss.find_invalid_shares([], ENTROPY) == set()


def test_a_dealing_satisfies_its_equations_in_libsecp256k1() -> None:
    context, dealing = DEALINGS[0]
    challenge = transcript.challenge(
        "p2pdfl/pvss/dealing/1", context, *dealing.encrypted_shares, *dealing.commitments
    ).to_bytes(32, "big")
    z = [int.from_bytes(scalar, "big") for scalar in dealing.response]
    for index, (key, share, commitment) in enumerate(
        zip(H.keys, dealing.encrypted_shares, dealing.commitments, strict=True)
    ):
        response = sum(coefficient * (index + 1) ** power for power, coefficient in enumerate(z)) % group.ORDER
        right = [PublicKey(key).multiply(response.to_bytes(32, "big")), PublicKey(share).multiply(challenge)]
        assert PublicKey.combine_keys(right).format() == commitment


def test_the_same_entropy_gives_the_same_bytes() -> None:
    assert H.deal(0, random.Random(5).randbytes) == H.deal(0, random.Random(5).randbytes)


def test_a_bad_key_is_blamed_on_no_dealer() -> None:
    keys = [bytes(33), *H.keys[1:]]
    with pytest.raises(group.InvalidPoint):
        pvss.find_invalid_dealings(DEALINGS, keys, H.threshold, ENTROPY)
    with pytest.raises(group.InvalidPoint):
        pvss.deal(b"c" * 32, keys, H.threshold, ENTROPY)


# --- tampered dealings -------------------------------------------------------------------------------------------

OTHER_POINT = point_of(12345)
OTHER_SCALAR = group.encode_scalar(12345)
BAD_POINTS = {
    "zeros": bytes(33),
    "off the curve": b"\x02" + (5).to_bytes(32, "big"),
    "hybrid tag": b"\x06" + OTHER_POINT[1:],
    "x above the field": b"\x02" + b"\xff" * 32,
}


def with_entry(values: Values, index: int, value: bytes) -> Values:
    return (*values[:index], value, *values[index + 1 :])


def assert_named(culprits: dict[int, Dealing]) -> None:
    """culprits: dealer -> its dealing; the others stay honest."""
    dealings = [(context, culprits.get(dealer, dealing)) for dealer, (context, dealing) in enumerate(DEALINGS)]
    assert H.find_invalid(dealings) == set(culprits)


@pytest.mark.parametrize("field", ["encrypted_shares", "commitments"])
@pytest.mark.parametrize("holder", range(5))
def test_a_changed_point_names_its_dealer(field: str, holder: int) -> None:
    dealing = DEALINGS[2][1]
    assert_named({2: dealing.replace(**{field: with_entry(getattr(dealing, field), holder, OTHER_POINT)})})


@pytest.mark.parametrize("coefficient", range(2))
def test_a_changed_response_names_its_dealer(coefficient: int) -> None:
    dealing = DEALINGS[3][1]
    assert_named({3: dealing.replace(response=with_entry(dealing.response, coefficient, OTHER_SCALAR))})


@pytest.mark.parametrize("field", ["encrypted_shares", "commitments"])
@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
def test_a_malformed_point_names_its_dealer(field: str, point: bytes) -> None:
    dealing = DEALINGS[0][1]
    assert_named({0: dealing.replace(**{field: with_entry(getattr(dealing, field), 4, point)})})


def test_a_response_above_the_order_names_its_dealer() -> None:
    dealing = DEALINGS[4][1]
    assert_named({4: dealing.replace(response=(dealing.response[0], b"\xff" * 32))})


@pytest.mark.parametrize("field", ["encrypted_shares", "commitments", "response"])
@pytest.mark.parametrize("change", [lambda values: values[:-1], lambda values: (*values, values[-1])], ids=["-1", "+1"])
def test_a_wrong_number_of_entries_names_its_dealer(field: str, change: Callable[[Values], Values]) -> None:
    dealing = DEALINGS[1][1]
    assert_named({1: dealing.replace(**{field: change(getattr(dealing, field))})})


def test_a_dealing_of_higher_degree_is_refused() -> None:
    context = H.dealing_context(1)
    steep = pvss.deal(context, H.keys, H.threshold + 1, ENTROPY)
    assert_named({1: steep})
    assert_named({1: steep.replace(response=steep.response[: H.threshold])})


def test_a_zero_response_is_refused() -> None:
    assert_named({0: DEALINGS[0][1].replace(response=(bytes(32), bytes(32)))})


@given(guilty=st.sets(st.integers(0, 4)))
@settings(max_examples=5)
def test_all_culprits_are_named_and_nobody_else(guilty: set[int]) -> None:
    culprits = {}
    for dealer in guilty:
        dealing = DEALINGS[dealer][1]
        culprits[dealer] = dealing.replace(commitments=with_entry(dealing.commitments, dealer, OTHER_POINT))
    assert_named(culprits)


def crooked_deal(
    dealer: int, *, shares: Sequence[int] = (0,) * 5, commitments: Sequence[int] = (0,) * 5
) -> tuple[Digest, Dealing]:
    """A dealing whose proof is right but for these multiples of G, added to each holder's share and commitment."""
    context = H.dealing_context(dealer)
    secret, nonce = ([group.random_scalar(ENTROPY) for _ in range(H.threshold)] for _ in range(2))

    def exponentiate(polynomial: Sequence[int], added: Sequence[int]) -> tuple[Point, ...]:
        values = [sum(c * (i + 1) ** k for k, c in enumerate(polynomial)) % group.ORDER for i in range(len(H.keys))]
        return tuple(
            group.encode(group.weighted_sum([value, extra], [group.decode(key), group.GENERATOR]))
            for value, key, extra in zip(values, H.keys, added, strict=True)
        )

    encrypted = exponentiate(secret, shares)
    committed = exponentiate(nonce, commitments)
    e = transcript.challenge("p2pdfl/pvss/dealing/1", context, *encrypted, *committed)
    response = tuple(group.encode_scalar((r - e * p) % group.ORDER) for p, r in zip(secret, nonce, strict=True))
    return context, Dealing(encrypted_shares=encrypted, commitments=committed, response=response)


def test_a_dealing_by_the_book_verifies() -> None:
    assert H.find_invalid([crooked_deal(0)]) == set()


def test_errors_of_two_dealers_do_not_cancel_out() -> None:
    plus, minus = (crooked_deal(dealer, commitments=(error, 0, 0, 0, 0)) for dealer, error in ((0, 1), (1, -1)))
    assert H.find_invalid([plus, minus, *DEALINGS[2:]]) == {0, 1}


@pytest.mark.parametrize("field", ["shares", "commitments"])
@pytest.mark.parametrize("errors", [(1, -1, 0, 0, 0), (0, 2, 0, -1, -1)])
def test_errors_of_two_holders_do_not_cancel_out(field: str, errors: tuple[int, ...]) -> None:
    """ATTACK: each holder has a random weight of its own.  Under one weight for the whole dealing, shares that lie on
    no polynomial would pass if their errors add up to nothing, and the beacon would depend on whose shares are used."""
    assert H.find_invalid([crooked_deal(0, **{field: errors}), *DEALINGS[1:]]) == {0}


# --- replays -----------------------------------------------------------------------------------------------------


def test_a_dealing_is_for_one_round() -> None:
    assert H.find_invalid([(H.dealing_context(0, round=ROUND + 1), DEALINGS[0][1])]) == {0}


def test_a_dealing_is_for_one_dealer() -> None:
    assert H.find_invalid([(H.dealing_context(1), DEALINGS[0][1]), DEALINGS[1]]) == {0}


def test_a_dealing_is_for_one_list_of_holders() -> None:
    dealing = DEALINGS[0][1]
    keys = [H.keys[1], H.keys[0], *H.keys[2:]]
    swapped = dealing.replace(
        encrypted_shares=(*dealing.encrypted_shares[1::-1], *dealing.encrypted_shares[2:]),
        commitments=(*dealing.commitments[1::-1], *dealing.commitments[2:]),
    )
    context = pvss.dealing_context(TASK, ROUND, address(0), keys, H.threshold)
    for candidate in (dealing, swapped):
        assert pvss.find_invalid_dealings([(context, candidate)], keys, H.threshold, ENTROPY) == {0}


def test_every_word_of_the_dealing_context_counts() -> None:
    base: tuple[Any, ...] = (TASK, ROUND, address(0), H.keys, 2)
    changed = [(b"u" * 32, 8, address(1), H.keys[:4], 3)[i] for i in range(5)]
    variants = [base, *((*base[:i], changed[i], *base[i + 1 :]) for i in range(5))]
    assert len({pvss.dealing_context(*variant) for variant in variants}) == 6


def test_every_word_of_the_share_context_counts() -> None:
    base: tuple[Any, ...] = (TASK, ROUND, HEAD, address(0), 0, 5, 2)
    changed = (b"u" * 32, 8, b"i" * 32, address(1), 1, 6, 3)
    variants = [base, *((*base[:i], changed[i], *base[i + 1 :]) for i in range(7))]
    assert len({pvss.share_context(*variant) for variant in variants}) == 8


def test_every_word_of_the_beacon_counts() -> None:
    base: tuple[Any, ...] = (TASK, ROUND, HEAD, OTHER_POINT)
    changed = (b"u" * 32, 8, b"i" * 32, point_of(2))
    variants = [base, *((*base[:i], changed[i], *base[i + 1 :]) for i in range(4))]
    assert len({pvss.beacon(*variant) for variant in variants}) == 5


# --- tampered shares ---------------------------------------------------------------------------------------------


def with_share(index: int, share: Share) -> list[Item]:
    context, key, summed, _ = ITEMS[index]
    return [*ITEMS[:index], (context, key, summed, share), *ITEMS[index + 1 :]]


@pytest.mark.parametrize("field", ["decrypted", "commitment_generator", "commitment_decrypted", "response"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_changed_share_names_its_holder(field: str, index: int) -> None:
    other = OTHER_SCALAR if field == "response" else OTHER_POINT
    assert pvss.find_invalid_shares(with_share(index, ITEMS[index][3].replace(**{field: other})), ENTROPY) == {index}


@pytest.mark.parametrize("field", ["decrypted", "commitment_generator", "commitment_decrypted"])
@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
def test_a_malformed_share_names_its_holder(field: str, point: bytes) -> None:
    assert pvss.find_invalid_shares(with_share(1, ITEMS[1][3].replace(**{field: point})), ENTROPY) == {1}


@pytest.mark.parametrize("response", [bytes(32), group.ORDER.to_bytes(32, "big"), b"\xff" * 32], ids=["0", "q", "max"])
def test_a_share_with_a_bad_response_names_its_holder(response: bytes) -> None:
    assert pvss.find_invalid_shares(with_share(1, ITEMS[1][3].replace(response=response)), ENTROPY) == {1}


@pytest.mark.parametrize(
    "context",
    [H.share_context(0, round=ROUND + 1), H.share_context(0, head=b"i" * 32), H.share_context(1)],
    ids=["round", "head", "holder"],
)
def test_a_share_is_for_one_round_head_and_holder(context: Digest) -> None:
    _, key, summed, share = ITEMS[0]
    assert pvss.find_invalid_shares([(context, key, summed, share)], ENTROPY) == {0}


def test_a_share_of_another_sum_is_refused() -> None:
    part = pvss.sum_dealings([dealing for _, dealing in DEALINGS[:4]])
    context, key, _, share = ITEMS[0]
    assert pvss.find_invalid_shares([(context, key, part[0], share)], ENTROPY) == {0}


def test_a_share_decrypted_with_another_key_is_refused() -> None:
    context, key, summed, _ = ITEMS[0]
    share = pvss.decrypt(context, H.secrets[1], key, summed, ENTROPY)
    assert pvss.find_invalid_shares([(context, key, summed, share)], ENTROPY) == {0}


def test_a_share_chosen_after_the_challenge_is_refused() -> None:
    """A holder who knows its key solves for a share that fits a challenge which does not cover the share."""
    context, key, summed, honest = ITEMS[0]
    secret = int.from_bytes(H.secrets[0], "big")
    nonce = group.random_scalar(ENTROPY)
    commitment_generator, commitment_decrypted = point_of(nonce), point_of(group.random_scalar(ENTROPY))
    e = transcript.challenge("p2pdfl/dleq/1", context, key, summed, commitment_generator, commitment_decrypted)
    z = (nonce - e * secret) % group.ORDER
    inverse = pow(z, -1, group.ORDER)
    forged = group.weighted_sum([inverse, -e * inverse], [group.decode(commitment_decrypted), group.decode(summed)])
    share = Share(
        decrypted=group.encode(forged),
        commitment_generator=commitment_generator,
        commitment_decrypted=commitment_decrypted,
        response=group.encode_scalar(z),
    )
    assert share.decrypted != honest.decrypted
    assert pvss.find_invalid_shares([(context, key, summed, share)], ENTROPY) == {0}


def test_a_proof_of_a_wrong_share_is_refused() -> None:
    context, key, summed, _ = ITEMS[0]
    statement = dleq.Statement(context=context, public=key, base=OTHER_POINT, image=summed)
    proof = dleq.prove(statement, int.from_bytes(H.secrets[0], "big"), ENTROPY)
    share = Share(
        decrypted=OTHER_POINT,
        commitment_generator=proof.commitment_generator,
        commitment_decrypted=proof.commitment_base,
        response=proof.response,
    )
    assert pvss.find_invalid_shares([(context, key, summed, share)], ENTROPY) == {0}


# --- sums --------------------------------------------------------------------------------------------------------


def test_the_order_of_dealings_does_not_change_the_sum() -> None:
    dealings = [dealing for _, dealing in DEALINGS]
    assert pvss.sum_dealings(dealings) == pvss.sum_dealings(dealings[::-1])


def test_the_sum_of_one_dealing_is_its_encrypted_shares() -> None:
    assert pvss.sum_dealings([DEALINGS[0][1]]) == DEALINGS[0][1].encrypted_shares


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, 64])
def test_a_whole_round_at_scale(count: int) -> None:
    holders = Holders.make(count, params.threshold(count))
    dealings = [holders.deal(dealer) for dealer in range(count)]
    assert holders.find_invalid(dealings) == set()
    items = holders.decrypt(pvss.sum_dealings([dealing for _, dealing in dealings]))
    assert pvss.find_invalid_shares(items, ENTROPY) == set()
    shares = {index: item[3].decrypted for index, item in enumerate(items)}
    last = dict(list(shares.items())[-holders.threshold :])
    assert pvss.recover(shares, holders.threshold) == pvss.recover(last, holders.threshold)
