"""Equality of discrete logarithms: one secret x with X = x G and Y = x D (Chaum and Pedersen, CRYPTO '92).

    prover    w random; A = w G, B = w D;  e = H(context, X, D, Y, A, B);  z = w - e x
    verifier  A = z G + e X  and  B = z D + e Y

The challenge covers both bases, both statements and both commitments.  ATTACK: if it leaves out D, a prover who knows
x picks Y last: it takes A = w G and any B, computes e and z, and solves for a D that fits; here D is the decrypted
share, so a holder could pass off any point as its share ("weak Fiat-Shamir", Bernhard et al. 2012).

Many proofs are checked as one equation with random weights, and bisected if that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pdfl.base.types import Digest, Entropy, Point, Scalar
from p2pdfl.crypto import group, transcript
from p2pdfl.crypto.batch import find_culprits

_CHALLENGE = "p2pdfl/dleq/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """context: everything else that the proof is bound to."""

    context: Digest
    public: Point
    """X = x G."""
    base: Point
    """D."""
    image: Point
    """Y = x D."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    commitment_generator: Point
    """A."""
    commitment_base: Point
    """B."""
    response: Scalar
    """z."""


def prove(statement: Statement, secret: int, entropy: Entropy) -> Proof:
    """`statement` must be true of `secret`."""
    nonce = group.random_scalar(entropy)
    commitment_generator = group.encode(group.multiply(group.GENERATOR, nonce))
    commitment_base = group.encode(group.multiply(group.decode(statement.base), nonce))
    challenge = _challenge(statement, commitment_generator, commitment_base)
    return Proof(
        commitment_generator=commitment_generator,
        commitment_base=commitment_base,
        # Python integers, not constant-time: the nonce is fresh, so no two timings concern the same sum
        response=group.encode_scalar((nonce - challenge * secret) % group.ORDER),
    )


def find_invalid(items: Sequence[tuple[Statement, Proof]], entropy: Entropy) -> set[int]:
    """Indices of the proofs that do not prove their statement, those with a malformed base among them.

    Raises group.InvalidPoint if X or Y is none: the prover did not choose them.
    """
    invalid: set[int] = set()
    equations: list[_Equation] = []
    for index, (statement, proof) in enumerate(items):
        fixed = group.decode(statement.public), group.decode(statement.image)
        try:
            equations.append(_equation(index, statement, fixed, proof, entropy))
        except (group.InvalidPoint, group.InvalidScalar):
            invalid.add(index)
    return invalid | {equation.index for equation in find_culprits(equations, _hold)}


@dataclass(frozen=True, slots=True)
class _Equation:
    """a A + b B = generator_weight G + a e X + b e Y + b z D, for random weights a and b."""

    index: int
    commitment_weights: tuple[int, int]
    commitments: tuple[group.Element, group.Element]
    generator_weight: int
    statement_weights: tuple[int, int, int]
    statement: tuple[group.Element, group.Element, group.Element]


def _equation(
    index: int, statement: Statement, fixed: tuple[group.Element, group.Element], proof: Proof, entropy: Entropy
) -> _Equation:
    """fixed: X and Y, decoded."""
    response = group.decode_scalar(proof.response)
    challenge = _challenge(statement, proof.commitment_generator, proof.commitment_base)
    if response == 0 or challenge == 0:
        # The contract's check by ecrecover does not work with zero; no honest prover ever gets one.
        raise group.InvalidScalar("zero")
    a, b = group.random_weight(entropy), group.random_weight(entropy)
    return _Equation(
        index=index,
        commitment_weights=(a, b),
        commitments=(group.decode(proof.commitment_generator), group.decode(proof.commitment_base)),
        generator_weight=a * response,
        statement_weights=(a * challenge, b * challenge, b * response),
        statement=(*fixed, group.decode(statement.base)),
    )


def _hold(equations: Sequence[_Equation]) -> bool:
    committed = group.weighted_sum(
        [weight for equation in equations for weight in equation.commitment_weights],
        [point for equation in equations for point in equation.commitments],
    )
    proven = group.weighted_sum(
        [sum(equation.generator_weight for equation in equations)]
        + [weight for equation in equations for weight in equation.statement_weights],
        [group.GENERATOR] + [point for equation in equations for point in equation.statement],
    )
    return bool(committed == proven)


def _challenge(statement: Statement, commitment_generator: Point, commitment_base: Point) -> int:
    return transcript.challenge(
        _CHALLENGE,
        statement.context,
        statement.public,
        statement.base,
        statement.image,
        commitment_generator,
        commitment_base,
    )
