"""Attacks beside rules beside audits, in one process: the tables that tell what a defence is worth.

A cell of the table is one simulated run: the real machines, aggregation, assignment, audits and bans (`sim.world`), a
network that costs nothing, a stand-in for the beacon's sharing, and real training.  Byzantine members follow the
agreement; only their updates and their audits lie.  So there may be more of them than the third that agreement
tolerates: with 7 of 16 the 9 honest members are no quorum, and had the 7 fallen silent, nothing would have closed.

spec.py     a study file
cell.py     one run
results.py  results.csv, table, heatmap
runner.py   all of them, on several processes, going on where they were stopped
"""

from p2pdfl.study.cell import Cell, Row, run_cell
from p2pdfl.study.runner import StudyFailed, run
from p2pdfl.study.spec import Attack, Study, StudyError, find, load

__all__ = ["Attack", "Cell", "Row", "Study", "StudyError", "StudyFailed", "find", "load", "run", "run_cell"]
