"""Every attacker that a peer's process can be; honest code knows of none of them (ARCHITECTURE).

machine.py   START HERE: the honest machine, wrapped, with its effects and events rewritten
updates.py   the bytes that it sends for an update; attacks.py has the papers' formulas
process.py   the parts of a peer that `node.lifecycle` is given in place of the honest ones
"""
