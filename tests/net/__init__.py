"""Tests of net, with a fake clock or loopback sockets."""
