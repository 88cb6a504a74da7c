"""The supervisor: owns the listening sockets, runs the workers, and handles signals."""
