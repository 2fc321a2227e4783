"""All numbers of one place."""
