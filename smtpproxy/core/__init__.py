"""The SMTP protocol without I/O: standard library only, no event loop, sockets or clock."""
