"""Where each figure of the README comes from; `make bench` runs them all."""
