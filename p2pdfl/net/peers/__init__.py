"""Finding the other members and being found: discovery, liveness, reachability, relays."""
