"""A finished run of four peers, written by hand: peer2 flips signs from round 1 and is caught in round 3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from p2pdfl.scenario.events import PeerRecord, PeerResult
from p2pdfl.scenario.rows import AnchorRow, SlashRow
from p2pdfl.scenario.spec import Scenario

ROUNDS = 9
ADDRESSES = {f"peer{index}": "0x" + f"{index:02x}" * 20 for index in range(4)}


def a_scenario(**expected: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "small",
            "peers": 4,
            "task": {"training_rounds": 3, "epoch_rounds": 4},
            "byzantine": ({"peer": 2, "behaviour": "sign_flip", "from_round": 1},),
            "expected": {"caught": {"peer2": "guilty"}, **expected},
        }
    )


def head(round: int) -> str:
    return f"{round:064x}"


def events_of(name: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"event": "started", "address": ADDRESSES[name], "peer_id": name}]
    for round in range(ROUNDS):
        events.append({"event": "phase", "round": round, "view": 0, "phase": "train"})
        events.append({"event": "beacon", "round": round, "value": head(100 + round)})
        if round == 3:
            accused = {"accuser": ADDRESSES["peer1"], "accused": ADDRESSES["peer2"], "audited_round": 1}
            events.append({"event": "accusation", "round": round, **accused})
            found = {"accuser": ADDRESSES["peer1"], "audited_round": 1, "verdict_round": round}
            ban = {"member": ADDRESSES["peer2"], "evidence": "guilty"}
            events.append({"event": "ban", "round": round, **ban, **found})
        events.append(
            {
                "event": "round",
                "round": round,
                "epoch": round // 4 if round < 8 else 1,
                "view": 0,
                "head": head(round),
                "state": head(50 + round),
                "accuracy": 0.5 + round / 20,
                "seconds": 2.0 if round < 3 else 1.0,
                "commits": 4,
                "updates": 3,
                "update_bytes": 3000 + 3 * round,
                "bytes_sent": 1000 * (round + 1),
            }
        )
    events.append({"event": "finished"})
    return events


def a_record(name: str, change: Callable[[list[dict[str, Any]]], Iterable[dict[str, Any]]] = iter) -> PeerRecord:
    record = PeerRecord(name=name, exit_code=0)
    for event in change(events_of(name)):
        record.add(json.dumps(event).encode())
    record.result = PeerResult(
        name=name,
        address=ADDRESSES[name],
        rounds=ROUNDS,
        state=head(50 + ROUNDS - 1),
        accuracy=0.9,
        heads={round: head(round) for round in range(ROUNDS)},
        seconds={"train": 2.0, "crypto": 1.0},
        bytes_sent=1000 * ROUNDS,
    )
    return record


def the_records() -> list[PeerRecord]:
    return [a_record(name) for name in ADDRESSES]


ANCHORS = [
    AnchorRow(epoch=0, round=3, head=head(3), tx="0x01", gas=90_000),
    AnchorRow(epoch=1, round=8, head=head(8), tx="0x02", gas=80_000),
]
SLASHES = [SlashRow(member=ADDRESSES["peer2"], wei=5 * 10**17, evidence="guilty", tx="0x03")]
