"""One member: the loop that feeds the protocol machine and performs its effects, and all that the loop stands on.

lifecycle.py         START HERE: from the key file to the last round
node.py              the only loop: events in, effects performed
updates.py           update bytes on their way: kept, pulled, reported
compute.py           training, replays, aggregation and cryptography, for worker threads
checkpoint_sync.py   the own checkpoint, another member's, or round 0
chain_outbox.py      anchors and slashes on their way to the chain
store.py             SQLite: slots signed, rounds, update bytes, the last checkpoints
event_log.py         events.jsonl; metrics.py and status_file.py show the same to others
keyfile.py           the peer's secret seed
"""
