"""Every repair of py-libp2p, by layer; `adapter` has those of the host and is the door."""
