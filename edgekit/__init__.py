"""The contract both sides share: bundles, profiles, messages, the command line, and the fleet."""

__version__ = "0.1.0"
