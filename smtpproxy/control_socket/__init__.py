"""The control socket: where the running service answers other commands of this program."""
