"""A server in front of any store: `tachograph serve`. See docs/reference/protocol.md."""
