"""A peer's database: what is committed survives a crash of the process, what is synced a loss of power too.

It is SQLite in memory.  What was written is kept as statements, by transaction, and a process that starts gets a
database with those that the disk still has.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pdfl.sim.true.process import Process

Statement = tuple[str, str, Any]
"""Method of a connection, SQL, parameters."""
Transaction = list[Statement]


@dataclass(kw_only=True)
class Disk:
    is_failing: Callable[[], bool] = lambda: False
    """Whether a commit fails now."""
    synced: list[Transaction] = field(default_factory=list)
    unsynced: list[Transaction] = field(default_factory=list)
    """Committed, and gone with the power."""
    envelopes: set[bytes] = field(default_factory=set)
    """What this peer has signed and synced, here or on a disk that it had before; encoded."""
    rounds: set[int] = field(default_factory=set)
    """That are closed and synced."""
    on_round: Callable[[int], None] = lambda round: None
    """Told when that is so."""
    failures: int = 0

    def connect(self, process: Process) -> Callable[[Path], sqlite3.Connection]:
        def opened(path: Path) -> sqlite3.Connection:
            db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Connection)
            for transaction in (*self.synced, *self.unsynced):
                for method, sql, parameters in transaction:
                    getattr(db, method)(sql, *parameters)
            db.attach(self, process)
            return db

        return opened

    def commit(self, transaction: Transaction, *, is_synced: bool) -> None:
        if not is_synced:
            self.unsynced.append(transaction)
            return
        self.synced += [*self.unsynced, transaction]
        self.unsynced.clear()
        for _, sql, parameters in transaction:
            if sql.startswith("INSERT INTO envelopes"):
                self.envelopes.add(parameters[0][-1])
            elif sql.startswith("INSERT INTO rounds"):
                self.rounds.add(parameters[0][0])
                self.on_round(parameters[0][0])

    def lose_power(self, rng: random.Random) -> None:
        """Of what was not synced, the first few writes may have got there."""
        self.synced += self.unsynced[: rng.randint(0, len(self.unsynced))]
        self.unsynced.clear()

    def read(self, sql: str) -> list[Any]:
        """Of what a process that starts now would find."""
        db = self.connect(Process())(Path())
        try:
            return db.execute(sql).fetchall()
        except sqlite3.OperationalError:  # no table yet
            return []
        finally:
            db.close()


class _Connection(sqlite3.Connection):
    _disk: Disk | None = None
    _process: Process
    _transaction: Transaction
    _is_synced = True

    def attach(self, disk: Disk, process: Process) -> None:
        self._disk, self._process, self._transaction = disk, process, []

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        disk = self._disk
        if disk is None or sql.startswith("SELECT") or sql.startswith("ROLLBACK"):
            return super().execute(sql, parameters)
        if sql.startswith("PRAGMA"):
            if "synchronous" in sql:
                self._is_synced = sql.endswith("FULL")
            return super().execute(sql, parameters)
        if sql.startswith("BEGIN"):
            self._process.step()
            self._transaction = []
            return super().execute(sql)
        if sql == "COMMIT":
            return self._commit(disk)
        self._transaction.append(("execute", sql, (parameters,)))
        return super().execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
        rows = list(rows)
        if self._disk is not None:
            self._transaction.append(("executemany", sql, (rows,)))
        return super().executemany(sql, rows)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        if self._disk is not None:
            self._process.step()
            self._disk.commit([("executescript", sql, ())], is_synced=True)
        return super().executescript(sql)

    def _commit(self, disk: Disk) -> sqlite3.Cursor:
        if disk.is_failing():
            disk.failures += 1
            raise sqlite3.OperationalError("disk I/O error")
        done = super().execute("COMMIT")
        disk.commit(self._transaction, is_synced=self._is_synced)
        self._process.step()
        return done
