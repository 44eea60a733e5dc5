"""Callbacks, one file per framework, imported only when its name is asked for."""
