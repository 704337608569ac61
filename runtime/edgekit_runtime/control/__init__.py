"""Commands on a device: received, checked, run once, answered until the coordinator has them."""
