"""The system in virtual time: everything is a function of a seed, and the same seed gives the same bytes.

Two worlds.  The fast one (`world`) runs the protocol's machines alone: hundreds of peers, digests for models.  The
true one (`true`) runs whole peers as they are: 4 to 16 of them, with their disks, chain and network.

worlds.py      START HERE: the worlds that can be drawn
search.py      seeds until something breaks; outcome.py is what one of them came to
invariants/    what must never break, in either world
adversary.py   attackers that only a simulator can have
mutants.py     bugs planted to show that the search finds such
difference.py  where two logs part
"""
