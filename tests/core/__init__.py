"""Tests of the protocol core, without event loop or sockets."""
