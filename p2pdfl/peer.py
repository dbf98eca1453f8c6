"""python -m p2pdfl.peer: the flags of one member of a task; what it does is `node.lifecycle`.

What a run needs is imported when it starts: --help is there at once, and a Python that must not run this says so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from p2pdfl.base import preflight

if TYPE_CHECKING:
    from p2pdfl.byzantine.machine import Deviation

EXIT_FAILED = 3
EXIT_INTERRUPTED = 130
FOLLOWERS_MAX = 32
"""Places that one peer may grant.  Each is one more copy of every message of the run."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        preflight.check()
        parsed = _parse(sys.argv[1:] if argv is None else argv)
        from p2pdfl.node.lifecycle import Options, live
        from p2pdfl.node.participant import Parts

        parts = Parts()
        if parsed.byzantine is not None:
            from p2pdfl.byzantine.process import byzantine_parts

            parts = byzantine_parts(parsed.byzantine)

        return live(
            Options(
                task=parsed.task,
                home=parsed.home,
                name=parsed.name or parsed.home.resolve().name,
                listen=parsed.listen or ["/ip4/127.0.0.1/tcp/0"],
                announce=parsed.announce,
                bootstrap=parsed.bootstrap,
                via=parsed.via,
                relay=parsed.relay,
                fund=parsed.fund,
                linger_s=parsed.linger,
                followers_max=parsed.followers,
                metrics=parsed.metrics,
                leave_after=parsed.leave,
            ),
            parts,
        )
    except preflight.BrokenInstall as error:
        print(f"p2pdfl peer: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m p2pdfl.peer",
        description="Take part in a task: register with a deposit, find the other members, train with them until the "
        "last round.  Ctrl-C stops at any time; the same command goes on where it was.",
    )
    parser.add_argument(
        "--task", type=Path, required=True, help="the published task file (`p2pdfl devchain` writes one)"
    )
    parser.add_argument(
        "--home", type=Path, required=True, help="this peer's directory: key, store, events, model; made if missing"
    )
    parser.add_argument("--name", help="shown in reports (default: the home's last part)")
    parser.add_argument(
        "--listen",
        action="append",
        type=_listen_address,
        metavar="MULTIADDR",
        help="where to listen, may be repeated: /ip4/0.0.0.0/tcp/9000 is every IPv4 address of this machine, "
        "/ip6/::/tcp/9000 every IPv6 address (default: /ip4/127.0.0.1/tcp/0, any free port, for this machine only)",
    )
    parser.add_argument(
        "--announce",
        action="append",
        type=_announced_address,
        default=[],
        metavar="MULTIADDR",
        help="where others should dial, if that is not where it listens: the router's address and the port that it "
        "forwards, or a name, as /dns4/peer.example.org/tcp/9000; may be repeated",
    )
    parser.add_argument(
        "--bootstrap",
        action="append",
        type=_bootstrap_address,
        default=[],
        metavar="MULTIADDR",
        help="a peer that is there already, with its /p2p/ part, may be repeated; none for the first peer",
    )
    parser.add_argument(
        "--via",
        action="append",
        type=_relay_address,
        default=[],
        metavar="MULTIADDR",
        help="a peer started with --relay, as it prints its address: others can then reach this one through it; for "
        "peers behind a router that forwards nothing; may be repeated",
    )
    parser.add_argument(
        "--relay",
        action="store_true",
        help="pass on data for members that others cannot reach, within limits; for peers that others can reach",
    )
    parser.add_argument("--fund", action="store_true", help="take the deposit from a development chain's own account")
    parser.add_argument(
        "--linger",
        type=_seconds,
        default=15.0,
        metavar="SECONDS",
        help="how long to answer the others after the last round (default: %(default)s)",
    )
    parser.add_argument(
        "--leave",
        type=_round,
        metavar="ROUND",
        help="leave once that round has closed (0: at once): the contract lets this peer go at the next epoch, and it "
        "follows from then on; its deposit is free after the contract's cooldown (default: stay to the end)",
    )
    parser.add_argument(
        "--followers",
        type=_follower_count,
        default=0,
        metavar="COUNT",
        help="how many strangers may follow the run through this peer; each costs what a member costs to talk to "
        "(default: none)",
    )
    parser.add_argument(
        "--metrics",
        type=_metrics_address,
        metavar="[HOST:]PORT",
        help="serve counters for Prometheus there (default: nowhere; the host, if left out, is 127.0.0.1)",
    )
    parser.add_argument(
        "--byzantine",
        type=_deviation,
        metavar="BEHAVIOUR:FROM_ROUND[:FACTOR][:every=ROUNDS][:with=ADDRESS,...]",
        help="cheat, to try out the defences: sign_flip:3 sends flipped updates from round 3 on, ipm:3:0.1:every=5 in "
        "each fifth round; with= names colluders, whom it shields (what each does: `p2pdfl/byzantine/machine.py` "
        "and `p2pdfl/byzantine/attacks.py`)",
    )
    return parser.parse_args(list(argv))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def _follower_count(text: str) -> int:
    if not text.isdecimal() or len(text) > 2 or int(text) > FOLLOWERS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {FOLLOWERS_MAX}")
    return int(text)


def _round(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no round")
    return int(text)


def _listen_address(text: str) -> str:
    from p2pdfl.net.addresses import listen_address

    return _address(listen_address, text)


def _announced_address(text: str) -> str:
    from p2pdfl.net.addresses import announced_address

    return _address(announced_address, text)


def _metrics_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16) or (":" in host and not host.startswith("[")):
        raise argparse.ArgumentTypeError(f"{text!r} is no port or host:port, as 9100 or [::1]:9100")
    return host.strip("[]") or "127.0.0.1", int(port)


def _bootstrap_address(text: str) -> str:
    from p2pdfl.net.addresses import bootstrap_peer

    return _address(bootstrap_peer, text)


def _relay_address(text: str) -> str:
    from p2pdfl.net.addresses import relay_peer

    return _address(relay_peer, text)


def _address(check: Callable[[str], object], text: str) -> str:
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _deviation(text: str) -> Deviation:
    from p2pdfl.byzantine.machine import Deviation

    try:
        return Deviation.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    from p2pdfl.base.workers import leave

    leave(main())
