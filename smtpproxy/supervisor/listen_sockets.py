"""The listening sockets of the service, open as long as its settings name them.

Clients come in by those of the listeners; that of the admin address stays open while they drain.
"""

import contextlib
import os
import socket
from collections import Counter

from smtpproxy.config.address import Address
from smtpproxy.config.schema import Settings
from smtpproxy.log import log
from smtpproxy.net import sockets
from smtpproxy.net.tproxy import set_transparent
from smtpproxy.supervisor import socket_activation

Key = tuple[Address, int]
"""An address, and its position among equal ones (port 0 is another port each time)."""
_ADMIN = -1
"""The position of the admin address."""


class ListenSockets:
    """Opens sockets or takes them from systemd; workers accept from them, sessions outlive them."""

    def __init__(self) -> None:
        self._given = socket_activation.take()
        self._open: dict[Key, list[socket.socket]] = {}
        self._passing: set[Key] = set()  # of what is open: transparent

    @property
    def addresses(self) -> list[str]:
        """The addresses of the listeners, with their real ports."""
        found = (each for key, each in self._open.items() if key[1] != _ADMIN)
        return [sockets.name_of(each) for listening in found for each in listening]

    def open(self, settings: Settings) -> list[tuple[str, str]]:
        """Open what the settings name and is not open yet; return name and address of what is new.

        Raises OSError, logged, if one can't be had; `keep_for` with the settings there were before
        leaves nothing changed.
        """
        added: dict[Key, list[socket.socket]] = {}
        for key, transparent in _keys(settings).items():
            try:
                if key not in self._open:
                    added[key] = self._open_one(key[0], transparent)
                elif transparent:
                    self._passing.add(key)
                    _let_pass(self._open[key])
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                log.get().error("cannot_listen", address=str(key[0]), why=why)
                for (address, _), found in added.items():
                    _close(address, found)
                raise
        self._open |= added
        self._passing |= {key for key, transparent in _keys(settings).items() if transparent}
        listeners = _listeners(settings)
        return [
            (listeners[key], sockets.name_of(each))
            for key, found in added.items()
            if key in listeners
            for each in found
        ]

    def _open_one(self, address: Address, transparent: bool) -> list[socket.socket]:
        if not address.given:
            return sockets.listen(address, transparent=transparent)
        if address.given not in self._given:
            raise OSError("systemd has passed no socket of this name")
        found = self._given[address.given]
        if transparent:
            _let_pass(found)
        return found

    def descriptors(self, settings: Settings) -> list[list[int]]:
        """Return the open descriptors for each listener of the settings."""
        return [[each.fileno() for each in self._open[key]] for key in _listeners(settings)]

    def admin(self, settings: Settings) -> list[socket.socket]:
        """Return the open sockets of the admin address, if there is one."""
        return self._open.get(_admin(settings), [])

    def keep_for(self, settings: Settings) -> None:
        """Close what the settings do not name, and let none be transparent that is not to be."""
        keys = _keys(settings)
        for key in [key for key in self._open if key not in keys]:
            _close(key[0], self._open.pop(key))
        for key in [key for key in self._passing if not keys.get(key)]:
            self._passing.remove(key)
            for each in self._open.get(key, ()):
                set_transparent(each, on=False)

    def close_listeners(self) -> None:
        """Let no client in any more."""
        for key in [key for key in self._open if key[1] != _ADMIN]:
            _close(key[0], self._open.pop(key))

    def close(self) -> None:
        """Close all."""
        for (address, _), found in self._open.items():
            _close(address, found)
        self._open.clear()


def _close(address: Address, found: list[socket.socket]) -> None:
    if address.given:
        return  # systemd's stay open: they may be named again
    for each in found:
        # At once, for the workers' copies too: they will hear of it a little later.
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    sockets.close(found, address)


def _let_pass(found: list[socket.socket]) -> None:
    """Take connections to other machines, too; raises OSError if we may not."""
    for each in found:
        set_transparent(each)


def _keys(settings: Settings) -> dict[Key, bool]:
    """Return the keys of all that the settings name, and which of these are transparent."""
    keys = {key: settings.listeners[name].transparent for key, name in _listeners(settings).items()}
    return keys if settings.admin.address == Address() else {**keys, _admin(settings): False}


def _admin(settings: Settings) -> Key:
    return (settings.admin.address, _ADMIN)


def _listeners(settings: Settings) -> dict[Key, str]:
    """Return the keys of the listeners, in order, with the names of these."""
    seen: Counter[Address] = Counter()
    keys = {}
    for name, listener in settings.listeners.items():
        keys[listener.address, seen[listener.address]] = name
        seen[listener.address] += 1
    return keys
