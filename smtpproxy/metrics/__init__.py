"""Metrics: counted here, added up over all workers, and rendered for Prometheus."""
