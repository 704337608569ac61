"""Sources: the readers behind `source.read`, one file a kind, none of which trusts its file."""
