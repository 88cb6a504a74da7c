"""Tests of the protocol core: no loop, no sockets."""
