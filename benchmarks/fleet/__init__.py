"""What the coordinator takes in."""
