"""Runs from store to store, and what waits on this machine to where it belongs."""
