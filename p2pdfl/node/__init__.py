"""One member: the loop that feeds the protocol machine and performs its effects, and all that the loop stands on.

lifecycle.py         START HERE: a peer's process, from the key file to the exit code
ports.py             network, chain, disk, worker threads, clock: what the rest is handed
participant.py       from the registration to the last round, on these ports
registration.py      the deposit, and the wait until registration closes
checkpoint_sync.py   the own checkpoint, another member's, or round 0
node.py              the only loop: events in, effects performed
resync.py            what a round lacks: asked of others and answered
updates.py           update bytes on their way: kept, pulled, reported
compute.py           training, replays, aggregation and cryptography, for worker threads
chain_outbox.py      anchors and slashes on their way to the chain
home.py              key, store and event log of a peer between its starts
store.py             SQLite: slots signed, rounds, update bytes, the last checkpoints
event_log.py         events.jsonl; metrics.py, status_file.py and console.py show the same to others
keyfile.py           the peer's secret seed
"""
