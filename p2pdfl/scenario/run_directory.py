"""Where a run goes, and what becomes of the one that is there already."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def make_room(directory: Path, *, made_by: str, keep: bool) -> None:
    """Removes an earlier run in `directory`, or moves it to the first free directory.N.  Raises OSError.

    made_by: a file that every earlier run has.  Nothing else is ever removed.
    """
    if not directory.exists():
        return
    if keep:
        number = 1
        while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
            number += 1
        directory.rename(aside)
    elif (directory / made_by).is_file():
        shutil.rmtree(directory)
    else:
        raise FileExistsError(errno.EEXIST, "is in the way, and is no earlier run; it is left alone", str(directory))
