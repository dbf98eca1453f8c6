"""The protocol: pure state machines, no I/O, no clock, no tensors.  START at `round.py`."""
