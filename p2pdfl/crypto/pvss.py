"""Publicly verifiable secret sharing: the beacon's dealings and shares (DESIGN 5).

ALBATROSS (Cascudo and David, ASIACRYPT 2020), over a group of prime order q with generator G.  n holders with keys
pk_i = x_i G, threshold t; holder i of 0..n-1 is at the evaluation point i + 1.

1. deal     p, r random polynomials of degree < t;  Y_i = p(i) pk_i,  A_i = r(i) pk_i,
            e = H(context, Y, A),  z(X) = r(X) - e p(X).  The secret is p(0) G; nobody ever reveals a p.
2. verify   A_i = z(i) pk_i + e Y_i for all i, with z of degree < t by its form (LDEI: a low-degree exponent
            interpolation proof).  All dealings of a round at once, as one equation with random weights.
3. sum      Y_i over the dealings that a certified head fixed: shares of the sum of their secrets.
4. decrypt  D_i = x_i^-1 Y_i = p(i) G, with a proof that x_i is the key's in both pk_i = x_i G and Y_i = x_i D_i.
5. recover  p(0) G from any t of the D_i by Lagrange interpolation in the exponent.
6. beacon   H(task, round, head, p(0) G).

Fewer than t shares say nothing about the sum if one dealer in it is honest (DDH); with t shares everybody gets the
same point, whoever is silent.  Each holder decrypts one sum per round: two sums would give away the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2pdfl.base.types import Address, Dealing, Digest, Entropy, Point, Scalar, Share
from p2pdfl.crypto import dleq, group, transcript
from p2pdfl.crypto.batch import find_culprits

_DEALING_CONTEXT = "p2pdfl/pvss/dealing-context/1"
_DEALING_CHALLENGE = "p2pdfl/pvss/dealing/1"
_SHARE_CONTEXT = "p2pdfl/pvss/share-context/1"
_BEACON = "p2pdfl/pvss/beacon/1"


class TooFewShares(ValueError):
    """Fewer than the threshold, so there is no beacon; never a partial one."""


# --- 1, 2: dealings ---------------------------------------------------------------------------------------------


def dealing_context(task: Digest, round: int, dealer: Address, keys: Sequence[Point], threshold: int) -> Digest:
    """What a dealing is for: shown under another round, dealer or list of holders it does not verify.

    keys: the holders' PVSS keys, in member order.
    """
    return transcript.digest(
        _DEALING_CONTEXT,
        task,
        transcript.word(round),
        dealer,
        transcript.word(len(keys)),
        transcript.word(threshold),
        *keys,
    )


def deal(context: Digest, keys: Sequence[Point], threshold: int, entropy: Entropy) -> Dealing:
    """Raises group.InvalidPoint if a key is none."""
    assert 1 <= threshold <= len(keys)
    holders = [group.decode(key) for key in keys]
    secret = _random_polynomial(len(keys), threshold, entropy)
    nonce = _random_polynomial(len(keys), threshold, entropy)
    encrypted_shares = _exponentiate(holders, secret)
    commitments = _exponentiate(holders, nonce)
    challenge = _dealing_challenge(context, encrypted_shares, commitments)
    return Dealing(
        encrypted_shares=encrypted_shares,
        commitments=commitments,
        response=tuple(
            group.encode_scalar((r - challenge * p) % group.ORDER) for p, r in zip(secret, nonce, strict=True)
        ),
    )


def find_invalid_dealings(
    dealings: Sequence[tuple[Digest, Dealing]], keys: Sequence[Point], threshold: int, entropy: Entropy
) -> set[int]:
    """Indices of the (context, dealing) pairs that do not verify, malformed ones among them.

    entropy: secret and fresh, never a stream that a dealer could foresee.
    Raises group.InvalidPoint if a key is none: no dealer is to blame for that.
    """
    holders = [group.decode(key) for key in keys]
    invalid: set[int] = set()
    equations: list[_Equation] = []
    for index, (context, dealing) in enumerate(dealings):
        try:
            equations.append(_equation(index, context, dealing, len(keys), threshold, entropy))
        except (_Malformed, group.InvalidPoint, group.InvalidScalar):
            invalid.add(index)
    culprits = find_culprits(equations, lambda part: _hold(part, holders))
    return invalid | {equation.index for equation in culprits}


# --- 3, 4: shares of the sum --------------------------------------------------------------------------------------


def sum_dealings(dealings: Sequence[Dealing]) -> tuple[Point, ...]:
    """Per holder, the sum of its encrypted shares.

    dealings: at least one, all verified for the same holders.  Raises group.InvalidPoint if a sum is infinity, which
    takes as many colluding dealers as could compute the beacon anyway.
    """
    assert dealings
    per_holder = zip(*(dealing.encrypted_shares for dealing in dealings), strict=True)
    return tuple(group.sum_points(points) for points in per_holder)


def share_context(
    task: Digest, round: int, head: Digest, holder: Address, index: int, holder_count: int, threshold: int
) -> Digest:
    """What a share is for.  round, head: those that fixed the dealings; index: the holder's."""
    return transcript.digest(
        _SHARE_CONTEXT,
        task,
        transcript.word(round),
        head,
        holder,
        transcript.word(index),
        transcript.word(holder_count),
        transcript.word(threshold),
    )


def decrypt(context: Digest, secret_key: Scalar, public_key: Point, summed: Point, entropy: Entropy) -> Share:
    """The holder's share of the summed dealings.  summed: its own entry of `sum_dealings`."""
    secret = group.decode_scalar(secret_key)
    # x^-1 in Python integers is not constant-time and the key is the same every round, so what is inverted is x times
    # a fresh blind: uniform, whatever x is.
    blind = group.random_scalar(entropy)
    inverse = pow(secret * blind % group.ORDER, -1, group.ORDER) * blind % group.ORDER
    decrypted = group.encode(group.multiply(group.decode(summed), inverse))
    proof = dleq.prove(_share_statement(context, public_key, summed, decrypted), secret, entropy)
    return Share(
        decrypted=decrypted,
        commitment_generator=proof.commitment_generator,
        commitment_decrypted=proof.commitment_base,
        response=proof.response,
    )


def find_invalid_shares(items: Sequence[tuple[Digest, Point, Point, Share]], entropy: Entropy) -> set[int]:
    """Indices of the (context, holder's key, its summed point, share) whose share is not that key's decryption.

    entropy: secret and fresh, never a stream that a holder could foresee.
    Raises group.InvalidPoint if a key or a summed point is none: nobody is to blame for that but the caller.
    """
    return dleq.find_invalid(
        [
            (
                _share_statement(context, key, summed, share.decrypted),
                dleq.Proof(
                    commitment_generator=share.commitment_generator,
                    commitment_base=share.commitment_decrypted,
                    response=share.response,
                ),
            )
            for context, key, summed, share in items
        ],
        entropy,
    )


# --- 5, 6: the beacon ---------------------------------------------------------------------------------------------


def recover(shares: Mapping[int, Point], threshold: int) -> Point:
    """Holder index -> its verified decrypted share, any `threshold` of them: always the same point.

    Raises TooFewShares.
    """
    assert threshold >= 1
    if len(shares) < threshold:
        raise TooFewShares(f"{len(shares)} of {threshold}")
    chosen = sorted(shares)[:threshold]
    assert chosen[0] >= 0
    weights = _lagrange_at_zero([index + 1 for index in chosen])
    return group.encode(group.weighted_sum(weights, [group.decode(shares[index]) for index in chosen]))


def beacon(task: Digest, round: int, head: Digest, point: Point) -> Digest:
    """head: the one that fixed the dealings, head[round - 2]."""
    return transcript.digest(_BEACON, task, transcript.word(round), head, point)


# --- polynomials over the integers mod q, as coefficients with the lowest first --------------------------------------


def _random_polynomial(holder_count: int, threshold: int, entropy: Entropy) -> list[int]:
    """Non-zero at every holder, where zero would give infinity (probability n/q).

    Sharing arithmetic on Python integers is not constant-time; each polynomial is used once and then forgotten.
    """
    while True:
        coefficients = [group.random_scalar(entropy) for _ in range(threshold)]
        if all(_evaluate(coefficients, holder_count)):
            return coefficients


def _evaluate(coefficients: Sequence[int], holder_count: int) -> Iterator[int]:
    """The values at 1..holder_count."""
    for x in range(1, holder_count + 1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % group.ORDER
        yield value


def _exponentiate(holders: Sequence[group.Element], polynomial: Sequence[int]) -> tuple[Point, ...]:
    values = _evaluate(polynomial, len(holders))
    return tuple(group.encode(group.multiply(holder, value)) for holder, value in zip(holders, values, strict=True))


def _lagrange_at_zero(points: Sequence[int]) -> list[int]:
    """l_i(0) = prod over j != i of x_j / (x_j - x_i)."""
    weights = []
    for i in points:
        numerator = denominator = 1
        for j in points:
            if j != i:
                numerator = numerator * j % group.ORDER
                denominator = denominator * (j - i) % group.ORDER
        weights.append(numerator * pow(denominator, -1, group.ORDER) % group.ORDER)
    return weights


# --- the LDEI proof, as one weighted equation per dealing -------------------------------------------------------------


class _Malformed(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class _Equation:
    """committed = sum of key_weights_i pk_i + challenge shares, for random weights s_i, where
    committed = sum of s_i A_i;  key_weights_i = s_i z(i);  shares = sum of s_i Y_i."""

    index: int
    committed: group.Element
    key_weights: Sequence[int]
    challenge: int
    shares: group.Element


def _equation(
    index: int, context: Digest, dealing: Dealing, holder_count: int, threshold: int, entropy: Entropy
) -> _Equation:
    if not len(dealing.encrypted_shares) == len(dealing.commitments) == holder_count:
        raise _Malformed("not one entry per holder")
    if len(dealing.response) != threshold:
        # ATTACK: one more coefficient and the shares lie on no polynomial that `threshold` holders can interpolate
        raise _Malformed("response is not of degree below the threshold")
    encrypted_shares = [group.decode(point) for point in dealing.encrypted_shares]
    commitments = [group.decode(point) for point in dealing.commitments]
    responses = list(_evaluate([group.decode_scalar(scalar) for scalar in dealing.response], holder_count))
    challenge = _dealing_challenge(context, dealing.encrypted_shares, dealing.commitments)
    if challenge == 0 or not all(responses):
        # The contract's check by ecrecover does not work with zero; no honest dealer ever gets one.
        raise _Malformed("zero")
    weights = [group.random_weight(entropy) for _ in range(holder_count)]
    return _Equation(
        index=index,
        committed=group.weighted_sum(weights, commitments),
        key_weights=[weight * response for weight, response in zip(weights, responses, strict=True)],
        challenge=challenge,
        shares=group.weighted_sum(weights, encrypted_shares),
    )


def _hold(equations: Sequence[_Equation], holders: Sequence[group.Element]) -> bool:
    committed = group.weighted_sum((1,) * len(equations), [equation.committed for equation in equations])
    key_weights = [sum(weights) for weights in zip(*(e.key_weights for e in equations), strict=True)]
    challenges = [equation.challenge for equation in equations]
    proven = group.weighted_sum(key_weights + challenges, [*holders, *(equation.shares for equation in equations)])
    return bool(committed == proven)


def _dealing_challenge(context: Digest, encrypted_shares: Sequence[Point], commitments: Sequence[Point]) -> int:
    return transcript.challenge(_DEALING_CHALLENGE, context, *encrypted_shares, *commitments)


def _share_statement(context: Digest, key: Point, summed: Point, decrypted: Point) -> dleq.Statement:
    return dleq.Statement(context=context, public=key, base=decrypted, image=summed)
