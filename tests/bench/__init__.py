"""Measurements, not tests: run by hand before and after a change of the hot path."""
