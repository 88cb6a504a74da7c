"""The supervisor: it owns the listening sockets, runs the workers, and obeys signals."""
