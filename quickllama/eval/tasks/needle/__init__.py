"""Facts in ordinary text."""
