"""Coverage-guided fuzzing of the pure functions that read what strangers send; see `run`."""
