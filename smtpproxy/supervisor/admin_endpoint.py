"""The admin endpoint: starts and stops the admin server as the settings change."""

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
    """The admin server at the address of the settings, if there is one.

    Args:
        source: The state of the service.
    """

    def __init__(self, source: "StatusSource") -> None:
        self._source = source
        self._admin: AdminServer | None = None
        self._settings = AdminSettings()
        self._reload_failed = False
        self._loaded = time()

    async def apply(self, settings: AdminSettings, sockets: list[socket.socket]) -> None:
        """Apply new settings; if they differ, all admin connections are closed.

        Args:
            settings: The settings that are now in use.
            sockets: The listening sockets of the address, which the caller keeps.
        """
        self._reload_failed, self._loaded = False, time()
        if settings == self._settings:
            return
        await self.close()
        self._settings = settings
        if settings.address == Address():
            return
        # The HTTP library is loaded only if it is used.
        from smtpproxy.admin.http_server import AdminServer

        self._admin = AdminServer(settings.token, self._source)
        await self._admin.start(sockets)
        for each in sockets:
            events.ADMIN_LISTENING.log(log.get(), address=name_of(each))

    def reload_failed(self) -> None:
        """Record that the last reload failed."""
        self._reload_failed = True

    def add_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Add whether the last reload succeeded, and when the settings in use were read."""
        snapshot.put(definitions.CONFIG_LAST_RELOAD_SUCCESSFUL, int(not self._reload_failed))
        snapshot.put(definitions.CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS, self._loaded)

    async def close(self) -> None:
        """Stop the admin server."""
        if self._admin is not None:
            await self._admin.stop()
            self._admin = None
