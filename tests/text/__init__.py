"""Tests of the edge: a fake clock and loopback sockets."""
