"""Scenarios: a network of peer processes with known cheaters and faults, run, watched and judged.

spec.py       scenario file -> Scenario
events.py     what a peer writes about itself -> PeerRecord
runner.py     START HERE: chain, peers, faults, until the run is over
network.py    a network namespace per peer, with a rate, losses and a delay
live.py       the table that shows a run while it goes on
report.py     records and chain -> summary, expectations, metrics, plot, verdict table
ledger.py     the chain as the judge of a run
"""
