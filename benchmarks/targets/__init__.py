"""What targets make of one model, and how long that takes."""
