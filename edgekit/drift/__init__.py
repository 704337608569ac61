"""Drift: whether what a device sees, and answers, is still what its model was evaluated on.

`views` turns a sample into a few numbers, `reference` is what those were at the build, `sketch`
counts what they are on a device, `judge` compares the two. docs/drift.md tells it with formulas.
"""
