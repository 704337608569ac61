"""The tools that the peer table compares; `catalogue` lists them.

This page imports nothing: the scripts beside it run in environments that have only their tool.
"""
