"""What runs on a workstation: from a trained model to a measured, signed bundle."""
