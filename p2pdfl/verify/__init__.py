"""Re-check a finished run from what it left behind: its transcript and the chain's events (DESIGN 9).

Nothing in the run's directory is believed.  Members, beacons, assignments, bans and states are computed again, by the
code that the members run, and compared with what the heads say.

    findings.py     what was found, check by check
    files.py        the run's directory, read as what it is: from outside
    registry.py     the chain's events -> who was registered, what was anchored, who was slashed
    rounds.py       START HERE: one round after the other, from the beacon to the certificate
    model.py        the states between the rounds, from the updates' bytes; replays
    outcome.py      anchors, slashes, the model that came of it
    verification.py all of it, in order

What this proves, and what not: every state follows from the updates that a quorum of the members signed for, and those
members are the ones that the chain export lists.  That the export is what happened on the chain, only the chain can
tell.  That an update is what its author's assignment gives, a replay tells (`--replay`).
"""
