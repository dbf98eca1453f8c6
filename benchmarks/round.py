"""What one round costs one peer, part by part: processor time on one thread, median over a few runs.

python benchmarks/round.py --members 8 16 64
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from p2pdfl.base import params
from p2pdfl.base.task import Task
from p2pdfl.base.types import Envelope, Kind
from p2pdfl.crypto import pvss
from p2pdfl.crypto.envelope import Domain, Signer, recover
from p2pdfl.crypto.keys import Keys, derive
from p2pdfl.learning.learner import Learner, measure

DOMAIN = Domain(chain_id=1, contract=bytes(20))
TASK_ID = bytes(32)
ROUND = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--members", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {count: {**crypto(count, options.runs), **learning(count, options.runs)} for count in options.members}
    table = Table(title="one peer, one round: ms of processor time", title_justify="left")
    table.add_column("part")
    for count in columns:
        table.add_column(f"{count} members", justify="right")
    for part in next(iter(columns.values())):
        table.add_row(part, *(f"{column[part]:.1f}" for column in columns.values()))
    Console().print(table)


def crypto(members: int, runs: int) -> dict[str, float]:
    keys = [derive(secrets.token_bytes(32)) for _ in range(members)]
    threshold = params.threshold(members)
    holders = [entry.pvss_key for entry in keys]
    contexts = [pvss.dealing_context(TASK_ID, ROUND, entry.address, holders, threshold) for entry in keys]
    dealings = [pvss.deal(context, holders, threshold, secrets.token_bytes) for context in contexts]
    claims = list(zip(contexts, dealings, strict=True))
    summed = pvss.sum_dealings(dealings)
    share_contexts = [
        pvss.share_context(TASK_ID, ROUND, bytes(32), entry.address, index, members, threshold)
        for index, entry in enumerate(keys)
    ]
    decrypt = [
        pvss.decrypt(context, entry.pvss_secret, entry.pvss_key, point, secrets.token_bytes)
        for context, entry, point in zip(share_contexts, keys, summed, strict=True)
    ]
    items = list(zip(share_contexts, holders, summed, decrypt, strict=True))
    points = {index: share.decrypted for index, share in enumerate(decrypt)}
    return {
        "deal": timed(runs, lambda: pvss.deal(contexts[0], holders, threshold, secrets.token_bytes)),
        "verify all dealings": timed(
            runs, lambda: pvss.find_invalid_dealings(claims, holders, threshold, secrets.token_bytes)
        ),
        "sum the dealings": timed(runs, lambda: pvss.sum_dealings(dealings)),
        "decrypt a share": timed(
            runs,
            lambda: pvss.decrypt(share_contexts[0], keys[0].pvss_secret, holders[0], summed[0], secrets.token_bytes),
        ),
        "verify all shares": timed(runs, lambda: pvss.find_invalid_shares(items, secrets.token_bytes)),
        "recover the beacon": timed(runs, lambda: pvss.recover(points, threshold)),
        "sign 4 envelopes, check all": timed(runs, lambda: votes(keys)),
    }


def votes(keys: list[Keys]) -> None:
    """COMMIT, NOTARIZE and CLOSE of everybody, and one PROPOSE."""
    envelope = Envelope(task=TASK_ID, epoch=0, round=ROUND, view=0, kind=int(Kind.NOTARIZE), body=bytes(32))
    signer = Signer(keys[0].chain_secret)
    signature = signer.sign(DOMAIN, envelope)
    for _ in range(3):
        signer.sign(DOMAIN, envelope)
    for _ in range(3 * len(keys) + 1):
        recover(DOMAIN, envelope, signature)


def learning(members: int, runs: int) -> dict[str, float]:
    learner = Learner(measure(Task()))
    state = learner.initial_state()
    generator = np.random.Generator(np.random.PCG64(0))

    def update(author: int) -> bytes:
        return learner.train(
            state, seed=generator.bytes(32), task_id=TASK_ID, round=ROUND, author=author.to_bytes(20, "big")
        )

    updates = [update(author) for author in range(members)]
    return {
        "train, or replay": timed(runs, lambda: update(0)),
        "aggregate all updates": timed(runs, lambda: learner.aggregate(state, updates)),
        "measure the accuracy": timed(runs, lambda: learner.evaluate(state)),
    }


def timed(runs: int, work: Callable[[], object]) -> float:
    """Median milliseconds of processor time."""
    work()
    taken = []
    for _ in range(runs):
        start_s = time.thread_time()
        work()
        taken.append(time.thread_time() - start_s)
    return statistics.median(taken) * 1000


if __name__ == "__main__":
    main()
