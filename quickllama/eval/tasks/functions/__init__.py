"""Functions of Python's library, asked for by name."""
