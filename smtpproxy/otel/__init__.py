"""Spans of sessions for OpenTelemetry; needs the packages of the extra `otel`."""
