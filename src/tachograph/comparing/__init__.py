"""Runs beside each other: what they share, where they differ, what was run before."""
