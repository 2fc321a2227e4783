"""The most common words of a list."""
