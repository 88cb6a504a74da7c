"""Seeing what the proxy does: log, metrics, trace. The only home of structlog."""
