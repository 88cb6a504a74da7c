"""TLS: contexts, certificates, and the handshake on an open connection."""
