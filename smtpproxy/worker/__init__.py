"""The worker process: the composition root, and its end of the control channel."""
