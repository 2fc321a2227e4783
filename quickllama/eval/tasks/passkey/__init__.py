"""A number in repeated filler."""
