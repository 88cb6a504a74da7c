"""The proxy between real programs: real clients ahead of it, real MTAs behind it."""
