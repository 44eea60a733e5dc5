"""Drop-in callbacks that record training runs into open tables."""

from __future__ import annotations
