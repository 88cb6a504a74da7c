"""The backend side: servers and their health, connection slots, and connecting to a server."""
