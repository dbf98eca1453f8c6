"""The protocol in virtual time: one event heap, one seed, byte-identical replays."""
