"""Gossip: who hears what, from whom, and what waits for the node."""
