"""What a peer may cost this one, and whose fault it was."""
