"""A proof of equal logarithms holds for what it was made for, and nothing else."""

from __future__ import annotations

import dataclasses
import random

import pytest
from coincurve import PublicKey

from p2pdfl.base.types import Point
from p2pdfl.crypto import dleq, group, transcript
from p2pdfl.crypto.dleq import Proof, Statement

ENTROPY = random.Random(1).randbytes
SECRET = group.random_scalar(ENTROPY)


def point_of(secret: int) -> Point:
    return group.public_key(group.encode_scalar(secret))


def times(point: Point, secret: int) -> Point:
    return group.encode(group.multiply(group.decode(point), secret))


BASE = point_of(group.random_scalar(ENTROPY))
STATEMENT = Statement(context=b"c" * 32, public=point_of(SECRET), base=BASE, image=times(BASE, SECRET))
PROOF = dleq.prove(STATEMENT, SECRET, ENTROPY)


def is_valid(statement: Statement, proof: Proof) -> bool:
    return dleq.find_invalid([(statement, proof)], ENTROPY) == set()


def test_a_proof_of_a_true_statement_verifies() -> None:
    assert is_valid(STATEMENT, PROOF)


def test_a_proof_satisfies_its_equations_in_libsecp256k1() -> None:
    challenge = transcript.challenge(
        "p2pdfl/dleq/1",
        STATEMENT.context,
        STATEMENT.public,
        STATEMENT.base,
        STATEMENT.image,
        PROOF.commitment_generator,
        PROOF.commitment_base,
    ).to_bytes(32, "big")
    for base, image, commitment in [
        (point_of(1), STATEMENT.public, PROOF.commitment_generator),
        (STATEMENT.base, STATEMENT.image, PROOF.commitment_base),
    ]:
        right = [PublicKey(base).multiply(PROOF.response), PublicKey(image).multiply(challenge)]
        assert PublicKey.combine_keys(right).format() == commitment


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Statement)])
def test_a_proof_is_for_one_statement(field: str) -> None:
    other = b"d" * 32 if field == "context" else point_of(99)
    assert not is_valid(dataclasses.replace(STATEMENT, **{field: other}), PROOF)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Proof)])
def test_a_changed_proof_is_refused(field: str) -> None:
    other = (5).to_bytes(32, "big") if field == "response" else point_of(99)
    assert not is_valid(STATEMENT, dataclasses.replace(PROOF, **{field: other}))


@pytest.mark.parametrize(
    "change",
    [
        {"response": bytes(32)},
        {"response": b"\xff" * 32},
        {"response": b""},
        {"commitment_base": bytes(33)},
        {"commitment_generator": b"\x04" + BASE[1:]},
    ],
    ids=["zero", "above q", "empty", "zero point", "tag 4"],
)
def test_a_malformed_proof_is_refused(change: dict[str, bytes]) -> None:
    assert not is_valid(STATEMENT, dataclasses.replace(PROOF, **change))


def test_a_proof_of_a_false_statement_is_refused() -> None:
    false = dataclasses.replace(STATEMENT, image=times(BASE, SECRET + 1))
    assert not is_valid(false, dleq.prove(false, SECRET, ENTROPY))


def test_a_malformed_public_point_is_not_blamed_on_the_prover() -> None:
    with pytest.raises(group.InvalidPoint):
        is_valid(dataclasses.replace(STATEMENT, public=bytes(33)), PROOF)


def test_a_base_chosen_after_the_challenge_is_refused() -> None:
    """The forgery against challenges that leave out the base, as deployed libraries had them."""
    nonce = group.random_scalar(ENTROPY)
    commitment_generator, commitment_base = point_of(nonce), point_of(group.random_scalar(ENTROPY))

    def forge(challenge: int) -> tuple[Statement, Proof]:
        response = (nonce - challenge * SECRET) % group.ORDER
        base = group.weighted_sum(
            [pow(response, -1, group.ORDER), -challenge * pow(response, -1, group.ORDER)],
            [group.decode(commitment_base), group.decode(STATEMENT.image)],
        )
        # both equations hold for this challenge, although base is not image divided by the secret
        zero = group.weighted_sum(
            [response, challenge, -1], [base, group.decode(STATEMENT.image), group.decode(commitment_base)]
        )
        assert zero.is_infinite()
        assert group.encode(base) != BASE
        proof = Proof(
            commitment_generator=commitment_generator,
            commitment_base=commitment_base,
            response=group.encode_scalar(response),
        )
        return dataclasses.replace(STATEMENT, base=group.encode(base)), proof

    weak_parts = (STATEMENT.context, STATEMENT.public, STATEMENT.image, commitment_generator, commitment_base)
    assert not is_valid(*forge(transcript.challenge("p2pdfl/dleq/1", *weak_parts)))
    full_parts = (STATEMENT.context, STATEMENT.public, BASE, STATEMENT.image, commitment_generator, commitment_base)
    assert not is_valid(*forge(transcript.challenge("p2pdfl/dleq/1", *full_parts)))


def crooked_proof(error_generator: int, error_base: int) -> tuple[Statement, Proof]:
    """A proof whose equations are each wrong by a multiple of G."""
    nonce = group.random_scalar(ENTROPY)
    first, second = (
        group.encode(group.weighted_sum([nonce, error], [group.decode(base), group.GENERATOR]))
        for base, error in ((point_of(1), error_generator), (STATEMENT.base, error_base))
    )
    e = transcript.challenge(
        "p2pdfl/dleq/1",
        STATEMENT.context,
        STATEMENT.public,
        STATEMENT.base,
        STATEMENT.image,
        first,
        second,
    )
    response = group.encode_scalar((nonce - e * SECRET) % group.ORDER)
    return STATEMENT, Proof(commitment_generator=first, commitment_base=second, response=response)


def test_a_proof_by_the_book_verifies() -> None:
    assert dleq.find_invalid([crooked_proof(0, 0)], ENTROPY) == set()


def test_errors_do_not_cancel_out_within_a_proof() -> None:
    assert dleq.find_invalid([crooked_proof(1, -1)], ENTROPY) == {0}


def test_errors_do_not_cancel_out_across_proofs() -> None:
    items = [crooked_proof(1, 0), (STATEMENT, PROOF), crooked_proof(-1, 0)]
    assert dleq.find_invalid(items, ENTROPY) == {0, 2}


def test_in_a_batch_exactly_the_invalid_ones_are_named() -> None:
    items = [(STATEMENT, dleq.prove(STATEMENT, SECRET, ENTROPY)) for _ in range(9)]
    for index in (2, 3, 8):
        items[index] = (dataclasses.replace(STATEMENT, context=b"d" * 32), items[index][1])
    items[5] = (STATEMENT, dataclasses.replace(PROOF, response=bytes(32)))
    assert dleq.find_invalid(items, ENTROPY) == {2, 3, 5, 8}


def test_an_empty_batch_is_valid() -> None:
    assert dleq.find_invalid([], ENTROPY) == set()
