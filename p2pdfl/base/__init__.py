"""The ground that all rooms stand on: types, bounds, canonical bytes, the task, and what every process does first."""
