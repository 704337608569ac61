"""Chaos: kills and faults at random, and what must be true after each."""
