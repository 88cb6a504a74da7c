"""Chaos: everything dies, resets and stalls at random, and what was acknowledged must be there."""
