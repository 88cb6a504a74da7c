"""The backend: its servers, which of them a session gets, and how it is reached."""
