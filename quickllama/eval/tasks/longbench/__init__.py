"""LongBench's files."""
