"""The admin endpoint: what the service shows at the admin address, which may move at a reload."""

import socket
from time import time
from typing import TYPE_CHECKING

from smtpproxy.config.address import Address
from smtpproxy.config.schema import AdminSettings
from smtpproxy.log import events, log
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.net.binding import name_of

if TYPE_CHECKING:
    from smtpproxy.admin.http_server import AdminServer
    from smtpproxy.admin.live_feed import StatusSource


class AdminEndpoint:
    """Shows what a source tells, at the address that the settings name."""

    def __init__(self, source: "StatusSource") -> None:
        self._source = source
        self._admin: AdminServer | None = None
        self._settings = AdminSettings()
        self._reload_failed = False
        self._loaded = time()

    async def settle(self, settings: AdminSettings, sockets: list[socket.socket]) -> None:
        """Follow settings that have come into force; `sockets` are those of the address.

        Who looks at the page has to come again if address or token are others now.
        """
        self._reload_failed, self._loaded = False, time()
        if settings == self._settings:
            return
        await self.close()
        self._settings = settings
        if settings.address == Address():
            return
        # The HTTP library is not loaded for nothing.
        from smtpproxy.admin.http_server import AdminServer

        self._admin = AdminServer(settings.token, self._source)
        await self._admin.start(sockets)
        for each in sockets:
            events.ADMIN_LISTENING.log(log.get(), address=name_of(each))

    def reload_failed(self) -> None:
        """Learn that the settings that were to come into force did not."""
        self._reload_failed = True

    def add_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Add which settings are in force: the last that there were?"""
        snapshot.put(definitions.CONFIG_LAST_RELOAD_SUCCESSFUL, int(not self._reload_failed))
        snapshot.put(definitions.CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS, self._loaded)

    async def close(self) -> None:
        """Show nothing any more."""
        if self._admin is not None:
            await self._admin.stop()
            self._admin = None
