"""RULER's files."""
