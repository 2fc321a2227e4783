"""People, things and rooms in a simulation."""
