"""Twenty rounds of three trainers each, computed in a thread as a node does it; `test_profiles` runs it in processes
that differ in threads and instruction sets.

    python -m learning.rounds OUT.json

Per model: digests of each round's updates and of its state, under profile `exact`; and under `tolerant`, where that
takes the model, one more update from each of these states, and of the last what training gave before it was quantized.
"""

import json
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from p2pdfl.base.task import Task
from p2pdfl.learning import data, models, train
from p2pdfl.learning.learner import Learner, State
from p2pdfl.learning.profiles import arithmetic

ROUNDS = 20
TRAINERS = tuple(bytes([trainer]) * 20 for trainer in range(3))
TOLERANT = ("digits_mlp", "digits_cnn")
MODELS = (*TOLERANT, "learning.custom:relu_and_max_pool")


def task(model: str, profile: str) -> Task:
    return Task.model_validate(
        {"model": model, "profile": profile, "outer_momentum": 0.5, "outer_learning_rate": 0.7, "local_steps": 10}
    )


def assignment(round: int, author: bytes) -> dict[str, Any]:
    seed = sha256(round.to_bytes(1, "big") + author).digest()
    return {"seed": seed, "task_id": bytes(32), "round": round, "author": author}


def run(model: str) -> dict[str, list[str]]:
    exact = Learner(task(model, "exact"))
    tolerant = Learner(task(model, "tolerant")) if model in TOLERANT else None
    state = exact.initial_state()
    digests: list[str] = []
    updates: list[str] = []
    for round in range(ROUNDS):
        if tolerant is not None:
            updates.append(tolerant.train(state, **assignment(round, TRAINERS[0])).hex())
        sent = [exact.train(state, **assignment(round, author)) for author in TRAINERS]
        state = exact.aggregate(state, sent)
        digests += [sha256(update).hexdigest() for update in sent] + [state.digest().hex()]
    return {
        "exact": digests,
        "tolerant": updates,
        "unquantized": [] if tolerant is None else [unquantized(state, model)],
    }


def unquantized(state: State, model: str) -> str:
    single, examples = arithmetic("tolerant"), data.load("digits")
    single.enter()
    vector = train.pseudo_gradient(
        single.place(models.build(model, 0)),
        state.parameters,
        single.tensor(examples.x_train),
        single.tensor(examples.y_train),
        np.arange(len(examples.x_train)),
        seed=bytes(32),
        local_steps=10,
        batch_size=32,
        learning_rate=0.3,
    )
    return sha256(vector.tobytes()).hexdigest()


def main() -> None:
    found: dict[str, dict[str, list[str]]] = {}
    thread = threading.Thread(target=lambda: found.update({model: run(model) for model in MODELS}))
    thread.start()
    thread.join()
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
