"""Real models and data for the demonstration and the tests, all from installed packages.

Promise: nothing is downloaded, and the same versions of the packages give the same bytes.
"""
