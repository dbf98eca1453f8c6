"""`p2pdfl doctor`: why a peer cannot be reached or sees too few others, in words, with what to do.

`examination.examine` goes from this machine outwards.  It uses a key of its own that nobody knows, never the peer's,
so it may run beside the peer.
"""
