"""The most frequent words of a text."""
