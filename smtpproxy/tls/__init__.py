"""TLS: contexts, certificates, and the handshake on a connection that is open already."""
