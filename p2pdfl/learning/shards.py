"""Non-IID splits: from its address alone, every author has examples of its own, with class proportions from a
symmetric Dirichlet distribution.

    Hsu, Qi & Brown 2019 (arXiv:1909.06335)   clients whose class proportions are Dirichlet: alpha -> infinity is the
                                              same for all, alpha -> 0 one class each.  Theirs is alpha times the prior
                                              over K classes: our alpha is theirs / K, for each class.
    Blackwell & MacQueen 1973 (Ann. Stat.)    labels drawn from such proportions, without the proportions: a Polya urn.
                                              The i-th label is, with weight K alpha, one of the K classes; else, with
                                              weight i, what one of the i labels before it was.

Integers only, so the bytes are the same everywhere.  Shards of different authors may overlap, and together need not
cover the training set: no author has to know of any other.
"""

from __future__ import annotations

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray

from p2pdfl.learning import draw

ALPHA_STEPS = 1000
"""Per unit of alpha."""
SHARD_DIVISOR = 4
"""A shard has this part of the training set: together a dozen members have almost all of it, as in a partition, which
nobody could make without knowing who they are.  16 shards of a sixteenth leave out a third (digits: 2 % accuracy)."""


def shard(classes: NDArray[np.int64], *, alpha: float, size: int, task_seed: int, author: bytes) -> NDArray[np.int64]:
    """Indices into `classes` [example]: `author`'s `size` examples.

    The author has an order of all examples; of each class it takes the first ones, and begins anew where a class is
    used up.
    """
    words = draw.stream(b"shard", task_seed.to_bytes(8, "big") + author)
    order = draw.permutation(words, len(classes))
    ordered = classes[order]
    by_class = [order[ordered == label] for label in np.unique(classes)]
    drawn = urn(words, class_count=len(by_class), alpha=alpha, count=size)
    counts = np.bincount(drawn, minlength=len(by_class))
    return np.concatenate([np.resize(examples, count) for examples, count in zip(by_class, counts, strict=True)])


def urn(words: PCG64, *, class_count: int, alpha: float, count: int) -> NDArray[np.int64]:
    """`count` labels, as if drawn from proportions that are Dirichlet(alpha, ..., alpha) themselves."""
    own_weight = round(alpha * ALPHA_STEPS)
    fresh_weight = class_count * own_weight
    totals = np.uint64(fresh_weight) + np.arange(count, dtype=np.uint64) * np.uint64(ALPHA_STEPS)
    labels: list[int] = []
    for place in (words.random_raw(count) % totals).tolist():
        if place < fresh_weight:
            labels.append(place // own_weight)
        else:
            labels.append(labels[(place - fresh_weight) // ALPHA_STEPS])
    return np.array(labels, dtype=np.int64)
