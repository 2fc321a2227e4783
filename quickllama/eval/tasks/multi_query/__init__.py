"""Several numbers asked for at once."""
