"""One value of a large JSON object."""
