"""Trusted: what the fleet's signed repository says, asked by a short-lived process.

The daemon imports `repository` and `target` of this package; `__main__` and what it needs run in
the child alone, so that TUF's library never takes memory of the daemon, and what a hostile
repository sends is never read by it.
"""
