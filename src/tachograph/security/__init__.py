"""What a secret is, where it may lie, and how it is kept out of every record."""
