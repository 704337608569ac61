"""Canary: a new version beside the one that serves, on the same live inputs, until it is judged.

`trial` runs the two and compares them, `rules` decides; `betting` is the sequential test that the
decision rests on, and docs/canary.md says what its error rates mean.
"""
