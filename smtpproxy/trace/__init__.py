"""Traces: exchanges written to files, and the commands that read them."""
