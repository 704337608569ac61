"""Other servers on the same models: one file each, with what was set there and why.

A file runs twice: `request` and `answer` here, where the load generator is, and `serve` in the
peer's own environment, which `environments` makes from PyPI.
"""
