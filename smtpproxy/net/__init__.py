"""The edge: client and backend connections around the protocol core."""
