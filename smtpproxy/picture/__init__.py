"""Pictures of sessions for a terminal, whoever has recorded them: labels, and the time line."""
