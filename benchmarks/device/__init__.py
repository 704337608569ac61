"""What the daemon costs a board."""
