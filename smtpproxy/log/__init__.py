"""The log: events of the service and of sessions. The only home of structlog."""
