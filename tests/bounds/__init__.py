"""Bounds: what hostile or broken peers can cost in memory and time."""
