"""The fleet side: broker, coordinator, rollouts, rounds. It imports neither other side."""
