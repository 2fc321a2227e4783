"""A string of doubled digits in repeated filler."""
