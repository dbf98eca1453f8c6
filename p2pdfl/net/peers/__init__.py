"""Finding the other members and being found: addresses, discovery, liveness, relays."""
