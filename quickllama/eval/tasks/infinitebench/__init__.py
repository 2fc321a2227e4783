"""∞-Bench's files."""
