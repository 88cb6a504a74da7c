"""The proxy between real programs: real clients in front, real MTAs as backends."""
