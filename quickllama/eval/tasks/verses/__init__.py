"""Verses of the King James Bible."""
