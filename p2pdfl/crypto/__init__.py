"""Cryptography without I/O: keys and entropy are arguments, nothing here reads a clock, a file or a random device."""
