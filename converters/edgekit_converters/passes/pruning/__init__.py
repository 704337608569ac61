"""What pass `prune` is made of: which channels hang together, which go, and what mends it."""
