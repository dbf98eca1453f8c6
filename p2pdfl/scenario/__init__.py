"""Scenarios: a network of peer processes with known cheaters and faults, run, watched and judged.

spec.py       scenario file -> Scenario
runner.py     START HERE: chain, peers, faults, until the run is over
peers.py      one peer: its process, what it has told, its fault
events.py     what a peer writes about itself -> PeerRecord
injection.py  faults begin and end: `faults` says when, `halt` makes the struck peer stand still until then
network.py    a network namespace per peer, with a rate, losses and a delay
live.py       the table that shows a run while it goes on
ledger.py     the chain as the judge of a run
course.py     who took part in which round, and whom the lists must name for that
aftermath.py  what came of a fault, and what must follow from where it struck
judge.py      all that is expected, held against what was seen
summary.py    records, chain and course -> Summary
report.py     Summary -> files, plot, verdict table
"""
