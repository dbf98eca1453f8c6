"""Text that every machine has: Python's own standard library, as next-character data.

The sources differ between Python versions, patch releases included, and so does the data's digest: all members of a
task need the publisher's.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pdfl.base.task import TaskError

CONTEXT = 64
"""Characters in an example."""
VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
OTHER = len(VOCABULARY)
"""The token of every character that the vocabulary has not."""
VOCABULARY_SIZE = OTHER + 1

# single files in each Python from 3.11 on; 1.1 MB
TRAIN_MODULES = (
    *("argparse", "ast", "base64", "calendar", "cmd", "codecs", "configparser", "contextlib", "csv", "dataclasses"),
    *("fractions", "functools", "gettext", "ipaddress", "optparse", "os", "pickle", "platform", "plistlib", "pprint"),
    *("random", "shutil", "socketserver", "statistics", "subprocess", "weakref"),
)
TEST_MODULES = ("heapq", "shlex", "textwrap")


def stdlib() -> tuple[NDArray[np.int64], ...]:
    """Tokens [example, position], and for each the one that follows.  Tested on modules that are not trained on."""
    directory = Path(sysconfig.get_path("stdlib"))
    return *_examples(directory, TRAIN_MODULES), *_examples(directory, TEST_MODULES)


def tokens(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
    table = np.full(128, OTHER)
    table[[ord(character) for character in VOCABULARY]] = np.arange(OTHER)
    return np.where(codes < 128, table[np.minimum(codes, 127)], OTHER)


def _examples(directory: Path, modules: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sequence = tokens("".join(_source(directory / f"{module}.py") for module in modules))
    count = (len(sequence) - 1) // CONTEXT
    inputs, following = sequence[: count * CONTEXT], sequence[1 : count * CONTEXT + 1]
    return inputs.reshape(count, CONTEXT), following.reshape(count, CONTEXT)


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")  # with \n for every line end
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"data: stdlib: {path} cannot be read ({error}); this needs a Python with its standard library's sources"
        ) from None
