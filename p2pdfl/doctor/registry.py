"""What the chain says: whether it answers, whether it is the right one, who is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pdfl.base.task import Deployment, Task
from p2pdfl.base.types import Address, Registration
from p2pdfl.chain.client import ChainClient, WrongContract
from p2pdfl.chain.rpc import ChainError, ChainUnreachable
from p2pdfl.doctor.finding import Finding, failed, ok, warning


@dataclass(frozen=True, kw_only=True)
class Seen:
    findings: list[Finding]
    registrations: Sequence[Registration] | None
    """None if the chain does not say."""


def look(deployment: Deployment, task: Task, own: Address | None) -> Seen:
    """Blocks for up to a minute where nobody answers.  own: this peer's address, if known."""
    findings: list[Finding] = []
    try:
        client = ChainClient(deployment, task)
    except ChainUnreachable as error:
        advice = "start the node, or put one that you can reach into the task file's rpc"
        return Seen(findings=[failed("chain", f"no usable answer: {error}", advice)], registrations=None)
    except WrongContract as error:
        advice = "check rpc, chain_id and contract in the task file against the publisher's"
        return Seen(findings=[failed("chain", str(error), advice)], registrations=None)
    except ChainError as error:
        return Seen(findings=[failed("chain", str(error), "check the task file's rpc")], registrations=None)
    try:
        head, start = client.block(), client.start_block()
        registrations = client.registrations()
        findings.append(ok("chain", f"{deployment.rpc} is chain {deployment.chain_id}, at block {head.number}"))
        willing = sum(not entry.exiting for entry in registrations)
        if start is None:
            findings.append(
                ok("registration", f"open: {willing} registered, it closes when {task.members_min} are there")
            )
        else:
            findings.append(ok("registration", f"closed at block {start.number}, {willing} members"))
        if own is not None:
            findings.append(_own(client, task, own, registrations, is_closed=start is not None))
    except ChainError as error:
        findings.append(failed("chain", str(error), "try again; if it stays, use another node"))
        return Seen(findings=findings, registrations=None)
    finally:
        client.close()
    return Seen(findings=findings, registrations=registrations)


def _own(
    client: ChainClient, task: Task, own: Address, registrations: Sequence[Registration], *, is_closed: bool
) -> Finding:
    name = f"0x{own.hex()}"
    entry = next((entry for entry in registrations if entry.address == own), None)
    if entry is not None:
        deposit = client.deposit_of(own)
        if deposit < task.deposit_wei:
            return failed(
                "membership",
                f"{name} has {_eth(deposit)} of its deposit of {_eth(task.deposit_wei)} left: it was slashed or has "
                "withdrawn",
                "this key takes no further part; events.jsonl says why",
            )
        if entry.exiting:
            return failed("membership", f"{name} has asked to exit", "it is left out of the next epochs")
        return ok("membership", f"{name} is registered, with a deposit of {_eth(deposit)}")
    if is_closed:
        return warning(
            "membership",
            f"{name} is not registered, and registration was closed without it",
            "start the peer all the same: it registers late, follows, and takes part from a later epoch on",
        )
    balance = client.balance_of(own)
    if balance <= task.deposit_wei:
        return failed(
            "membership",
            f"{name} is not registered and has {_eth(balance)}, the deposit is {_eth(task.deposit_wei)} and gas comes "
            "on top",
            f"send {name} the difference, or start the peer with --fund on a development chain",
        )
    return warning("membership", f"{name} is not registered yet", "the peer registers when it starts")


def _eth(wei: int) -> str:
    return f"{wei / 10**18:g} ETH"
