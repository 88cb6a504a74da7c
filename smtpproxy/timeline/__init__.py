"""Time lines of sessions for a terminal: rows, labels and how they are drawn."""
