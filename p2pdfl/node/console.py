"""What a peer says to the person at its terminal: a line about what matters to one."""

from __future__ import annotations

from collections.abc import Mapping

from p2pdfl.node.event_log import Value

_TEXTS = {
    "round": "round {round}: accuracy {accuracy:.3f}, {updates} updates, {seconds:.1f} s",
    "timers": "round {round}: the first leader has {view_ms} ms, by what the rounds before took",
    "accusation": "round {round}: {accuser} accuses {accused} of its update of round {audited_round}",
    "verdict": "round {round}: the jury finds {outcome}, {accused} accused by {accuser}",
    "equivocation": "round {round}: {member} signed twice in one slot",
    "ban": "round {round}: {member} is banned ({evidence})",
    "leaving": "asked the contract to let this peer go: it is no member from the next epoch on ({tx})",
    "resumed": "goes on from its own checkpoint of round {round}",
    "joined": "joined from the anchor of epoch {epoch} (round {round}), "
    "checkpoint of {checkpoint_bytes} bytes from {peer_id}",
    "no_checkpoint": "nobody hands out a checkpoint of the anchored epoch {epoch}: following from round 0",
    "checkpoint_refused": "refused the checkpoint of {peer_id}: {reason}",
    "checkpoint_unusable": "checkpoint: {error}",
    "anchor": "round {round} is anchored on chain: {tx}",
    "slash": "{member} is slashed ({evidence}): {tx}",
    "chain_error": "chain: {what}: {error}",
}


def say(text: str) -> None:
    print(text, flush=True)


def tell(event: str, fields: Mapping[str, Value]) -> None:
    text = _TEXTS.get(event)
    if event == "round" and fields["accuracy"] is None:
        text = "round {round}: {updates} updates, {seconds:.1f} s"
    if text is not None:
        say(text.format(**fields))
