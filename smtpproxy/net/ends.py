"""The two ends of each of a session's connections, as those who watch are told them."""

import asyncio

from smtpproxy.core.observer import Ends


def ends_of(client_name: str, client: asyncio.Transport, backend: asyncio.Transport) -> Ends:
    """Look up both ends of both connections; `client_name` is who the client is known as."""
    return Ends(
        client=client_name,
        listener=_end_of(client, "sockname"),
        proxy=_end_of(backend, "sockname"),
        server=_end_of(backend, "peername"),
    )


def _end_of(transport: asyncio.BaseTransport, which: str) -> str:
    """Return one end of a connection as `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix`."""
    name = transport.get_extra_info(which)
    if not isinstance(name, tuple):
        return "unix"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
