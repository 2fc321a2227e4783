"""BABILong's files."""
