"""One network in a process of its own: says on stdout, as JSON lines, what it sees.  Ends with its stdin."""

from __future__ import annotations

import argparse
import json
import secrets

import trio

from p2pdfl.net import open_network
from p2pdfl.net.peers.reachability import Reachability, watched


async def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--listen", "--announce", "--bootstrap", "--via"):
        parser.add_argument(flag, action="append", default=[])
    parser.add_argument("--relay", action="store_true")
    options = vars(parser.parse_args())

    def tell(found: Reachability) -> None:
        say({**found.fields(), "words": found.words()})

    async with (
        open_network(key_seed=secrets.token_bytes(32), topic="nat", **options) as network,
        watched(network, tell, entropy=secrets.token_bytes),
        trio.open_nursery() as nursery,
    ):

        async def report() -> None:
            count = 0
            while True:
                await network.wait_connected(count + 1)
                count = len(network.connected())
                say({"connected": sorted(peer.decode() for peer in network.connected())})

        async def report_dials() -> None:
            failed = 0
            while True:
                if network.counters["dials failed"] != failed:
                    failed = network.counters["dials failed"]
                    say({"dials_failed": failed, "still": sorted(peer.decode() for peer in network.connected())})
                await trio.sleep(0.1)

        say({"peer_id": network.peer_id.decode(), "addresses": network.addresses})
        nursery.start_soon(report)
        nursery.start_soon(report_dials)
        async with trio.lowlevel.FdStream(0) as stdin:
            async for _ in stdin:
                pass
        nursery.cancel_scope.cancel()


def say(fields: dict[str, object]) -> None:
    print(json.dumps(fields), flush=True)


trio.run(main)
