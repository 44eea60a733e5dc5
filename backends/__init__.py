"""Stores. One file each; `base.py` is the interface, `docs/architecture.md` the rules."""
