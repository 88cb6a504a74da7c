"""The servers of a backend: the addresses at which it can be reached."""

import asyncio
from collections.abc import Callable

from smtpproxy.address import Address


class Server:
    """One address of a backend; a name is resolved at each connect, without blocking the loop."""

    __slots__ = ("_address", "name")

    def __init__(self, address: Address) -> None:
        self._address = address
        self.name = str(address)

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Open a connection; raises OSError if the server can't be reached."""
        loop = asyncio.get_running_loop()
        if self._address.is_unix:
            await loop.create_unix_connection(factory, self._address.path)
        else:
            await loop.create_connection(factory, self._address.host, self._address.port)
