"""Facts of our own in ordinary public texts, and ways to ask for them."""
