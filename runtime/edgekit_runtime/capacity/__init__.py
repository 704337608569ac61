"""Capacity: what a board can carry, measured against the server that will serve.

Load is open loop: requests are sent when they are due, whatever became of those before, and latency
counts from the moment a request was due. So a server that stalls is charged for everybody who would
have come in the meantime (no coordinated omission), and a generator that is late makes the figures
worse, never better.
"""
