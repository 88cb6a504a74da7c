"""Tests of reading trace files."""
