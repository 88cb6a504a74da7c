"""The protocol: octets in, octets out; standard library only, no loop, no sockets, no clock."""
