"""The level of reproduction that the record of a run allows, and what is missing for more."""
