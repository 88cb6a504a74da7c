"""The worker's process: the composition root and its end of the control channel."""
