"""What a person would change."""

RATE = 0.1
