"""The supervisor: it owns the listening sockets, runs workers, and obeys signals."""
