"""What a peer may cost this one, whose fault it was, and who may listen in."""
