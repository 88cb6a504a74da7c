"""Tests of what observers make of exchanges."""
