"""What a build costs and what it gains, measured on a real model."""
