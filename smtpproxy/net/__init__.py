"""Network I/O: client and backend connections around the protocol core."""
