"""Chains of assignments in ordinary text."""
