"""What must hold of every simulated run, whatever the faults: one file per promise.

They look at what peers do, not at what they say, and know nothing of how a world is simulated: a world calls the
`Watcher` while it runs, and answers for the state of its peers as `Observed`.
"""
