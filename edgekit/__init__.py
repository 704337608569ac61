"""The contract both sides share: bundles, profiles, messages, the command line, and the fleet."""

import os

# onnxruntime 1.31 reports its use to its maker unless this is set before it is imported. Nothing
# leaves a device or a workstation that its owner did not ask for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
