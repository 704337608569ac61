"""What runs on a board: engines, serving, updates, telemetry and training."""
