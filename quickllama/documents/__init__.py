"""Documents: a text read once, asked many times; passages found by retrieval heads."""
