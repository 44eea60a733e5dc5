"""What travels between a client and a server, as bytes. Knows neither HTTP nor stores."""
