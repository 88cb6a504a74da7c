"""The doors: the listening sockets of the service, open as long as its settings name them.

Clients come in by those of the listeners; that of the admin address stays open while they drain.
"""

import contextlib
import os
import socket
from collections import Counter

from smtpproxy.address import Address
from smtpproxy.net import sockets
from smtpproxy.observe import log
from smtpproxy.settings import Settings
from smtpproxy.supervisor import inherited

Key = tuple[Address, int, bool]
"""An address, its position among equal ones (port 0 is another port each time), and whether it is
open to connections for other machines, too."""
_ADMIN = -1
"""The position of the admin address."""


class Doors:
    """Opens sockets or takes them from systemd; workers accept from them, sessions outlive them."""

    def __init__(self) -> None:
        self._given = inherited.take()
        self._open: dict[Key, list[socket.socket]] = {}

    @property
    def addresses(self) -> list[str]:
        """The addresses of the listeners, with their real ports."""
        return _names(self._open)

    def open(self, settings: Settings) -> list[str]:
        """Open what the settings name and is not open yet; return the new listeners' addresses.

        Raises OSError, logged, with nothing changed, if one can't be had.
        """
        added: dict[Key, list[socket.socket]] = {}
        for key in _keys(settings):
            if key in self._open:
                continue
            try:
                added[key] = self._open_one(*key)
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                log.get().error("cannot_listen", address=str(key[0]), why=why)
                for (address, _, _), found in added.items():
                    _close(address, found)
                raise
        self._open |= added
        return _names(added)

    def _open_one(self, address: Address, _: int, transparent: bool) -> list[socket.socket]:
        if not address.given:
            return sockets.listen(address, transparent=transparent)
        if address.given not in self._given:
            raise OSError("systemd has passed no socket of this name")
        return self._given[address.given]

    def descriptors(self, settings: Settings) -> list[list[int]]:
        """Return the open descriptors for each listener of the settings."""
        return [[each.fileno() for each in self._open[key]] for key in _listeners(settings)]

    def admin(self, settings: Settings) -> list[socket.socket]:
        """Return the open sockets of the admin address, if there is one."""
        return self._open.get(_admin(settings), [])

    def keep_for(self, settings: Settings) -> None:
        """Close what the settings do not name."""
        keys = set(_keys(settings))
        for key in [key for key in self._open if key not in keys]:
            _close(key[0], self._open.pop(key))

    def close_listeners(self) -> None:
        """Let no client in any more."""
        for key in [key for key in self._open if key[1] != _ADMIN]:
            _close(key[0], self._open.pop(key))

    def close(self) -> None:
        """Close all."""
        for (address, _, _), found in self._open.items():
            _close(address, found)
        self._open.clear()


def _names(opened: dict[Key, list[socket.socket]]) -> list[str]:
    """Return the addresses of listeners among these."""
    found = (each for key, each in opened.items() if key[1] != _ADMIN)
    return [sockets.name_of(each) for listening in found for each in listening]


def _close(address: Address, found: list[socket.socket]) -> None:
    if address.given:
        return  # systemd's stay open: they may be named again
    for each in found:
        # At once, for the workers' copies too: they will hear of it a little later.
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    sockets.close(found, address)


def _keys(settings: Settings) -> list[Key]:
    """Return all that the settings name."""
    keys = _listeners(settings)
    return keys if settings.admin.address == Address() else [*keys, _admin(settings)]


def _admin(settings: Settings) -> Key:
    return (settings.admin.address, _ADMIN, False)


def _listeners(settings: Settings) -> list[Key]:
    seen: Counter[Address] = Counter()
    keys = []
    for listener in settings.listener:
        keys.append((listener.address, seen[listener.address], listener.transparent))
        seen[listener.address] += 1
    return keys
