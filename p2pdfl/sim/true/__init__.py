"""The true world: whole peers, as `p2pdfl.node` has them, in virtual time on devices that fail.

Everything above the ports (`node.ports`) is the code of a real peer: registration, checkpoint sync, node, resync,
updates, chain outbox, store, event log.  Below are models, each a function of the seed.

runtime.py    trio as a function of a seed
process.py    one life of a peer, which may end between any two effects
disk.py       SQLite that can fail a write, and that a loss of power takes back to what was synced
network.py    gossip, requests and bodies with delay, loss and cuts
chain.py      registry and anchors, with blocks, confirmations, reorganizations and outages
workers.py    threads that take their time; the peers' clocks
learner.py    a learner of a few numbers
peer.py       a peer and its supervisor, which starts it again
world.py      all of it, watched by the checkers
faults.py     what goes wrong, drawn from a seed
hunt.py       one run per seed
mutants.py    bugs of the node, planted to be found
"""
