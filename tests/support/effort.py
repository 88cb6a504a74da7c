"""Effort: how many examples a property is tried with, the same ones each time."""

from hypothesis import HealthCheck, settings

QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
THOROUGH = settings(QUICK, max_examples=400)
