"""Seeing what the proxy does: the log. The only home of structlog."""
