"""The chain: the contract, a synchronous client for worker threads, and an embedded node for development."""
