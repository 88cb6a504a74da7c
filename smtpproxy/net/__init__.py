"""The edge: connections, time and servers around the protocol core."""
