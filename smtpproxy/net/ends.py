"""The two ends of each of a session's connections, as those who watch are told them."""

import asyncio

from smtpproxy.core.observer import Ends
from smtpproxy.net.peer import endpoint, name_of


def ends_of(client_name: str, client: asyncio.Transport, backend: asyncio.Transport) -> Ends:
    """Look up both ends of both connections; `client_name` is who the client is known as."""
    return Ends(
        client=client_name,
        listener=name_of(endpoint(client.get_extra_info("sockname"))),
        proxy=name_of(endpoint(backend.get_extra_info("sockname"))),
        server=name_of(endpoint(backend.get_extra_info("peername"))),
    )
