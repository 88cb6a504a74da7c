"""The listening sockets of the service, open as long as its settings name them.

Clients come in by those of the listeners; that of the admin address, and the control socket, stay
open while they drain.
A listener at `[::]` has a second one, for IPv4, unless another listener wants IPv4 at its port; so
at a reload that socket can become the other listener's, and none has to be closed for it.  One
at a single address stays open, too, when a listener at all addresses takes its place.
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Container

from smtpproxy.config.address import Address, ports_on_ipv4
from smtpproxy.config.schema import Settings
from smtpproxy.log import events, log
from smtpproxy.net import sockets
from smtpproxy.net.tproxy import set_transparent
from smtpproxy.supervisor import socket_activation
from smtpproxy.supervisor.upgrade import Inherited

Key = tuple[Address, int]
"""An address, and its position among equal ones (port 0 is another port each time)."""
_ADMIN, _CONTROL = -1, -2
"""The positions of the admin address and of the control socket."""


class ListenSockets:
    """Opens sockets or takes them from systemd; workers accept from them, sessions outlive them.

    inherited: those that the supervisor of an older version has passed.
    shared: whether another supervisor has them, too; then they are closed here alone.
    """

    def __init__(self, inherited: Inherited | None = None) -> None:
        self.shared = inherited is not None
        self._inherited: dict[tuple[str, int], list[socket.socket]] = {}
        if inherited is None:
            self._given = socket_activation.take()
        else:
            self._given = {name: _adopt(found) for name, found in inherited.given.items()}
            for text, position, found in inherited.sockets:
                self._inherited[text, position] = _adopt(found)
        self._open: dict[Key, list[socket.socket]] = {}
        self._passing: set[Key] = set()  # of what is open: transparent

    @property
    def addresses(self) -> list[str]:
        """The addresses of the listeners, with their real ports."""
        found = (each for key, each in self._open.items() if key[1] >= 0)
        return [sockets.name_of(each) for listening in found for each in listening]

    def open_control(self, address: Address) -> list[socket.socket]:
        """Open the control socket, which stays open to the end; raises OSError."""
        key = (address, _CONTROL)
        self._open[key] = self._open_one(key, False, sockets.MODE)
        return self._open[key]

    def open(self, settings: Settings) -> list[tuple[str, str]]:
        """Open what the settings name and is not open yet; return name and address of what is new.

        Raises OSError, logged, if one can't be had; `keep_for` with the settings there were before
        leaves nothing changed.
        """
        added: dict[Key, list[socket.socket]] = {}
        wanted, modes = self._wanted(settings), self._modes(settings)
        for key, transparent in wanted.items():
            try:
                if key not in self._open:
                    added[key] = self._open_one(key, transparent, modes.get(key, sockets.MODE))
                elif transparent:
                    self._passing.add(key)
                    _let_pass(self._open[key])
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                events.CANNOT_LISTEN.log(log.get(), address=str(key[0]), reason=why)
                for (address, _), found in added.items():
                    self._close(address, found)
                raise
        self._open |= added
        self._passing |= {key for key, transparent in wanted.items() if transparent}
        by_listener = zip(settings.listeners, self._by_listener(settings), strict=True)
        names = {key: name for name, keys in by_listener for key in keys}
        return [
            (names[key], sockets.name_of(each))
            for key, found in added.items()
            if key in names
            for each in found
        ]

    def _open_one(self, key: Key, transparent: bool, mode: int) -> list[socket.socket]:
        address, position = key
        inherited = self._inherited.pop((str(address), position), None)
        if inherited is not None:
            if transparent:
                _let_pass(inherited)
            return inherited
        if not address.given:
            # The IPv4 half of a known port has a key of its own.
            return sockets.listen(
                address,
                transparent=transparent,
                with_ipv4=not address.port,
                mode=mode,
                beside=self._open_at(address.port),
            )
        if address.given not in self._given:
            raise OSError("systemd has passed no socket of this name")
        found = self._given[address.given]
        if transparent:
            _let_pass(found)
        return found

    def _open_at(self, port: int) -> list[socket.socket]:
        """Return what is open at a port: a reload may open what overlaps, and then closes it."""
        return [
            each
            for key, found in self._known().items()
            if key[0].port == port > 0
            for each in found
        ]

    def _known(self) -> dict[Key, list[socket.socket]]:
        """Return all that is open, or was inherited and is not taken yet."""
        inherited = {
            (Address.parse(text), position): found
            for (text, position), found in self._inherited.items()
        }
        return inherited | self._open

    def descriptors(self, settings: Settings) -> list[list[int]]:
        """Return the open descriptors for each listener of the settings."""
        return [
            [each.fileno() for key in keys for each in self._open[key]]
            for keys in self._by_listener(settings)
        ]

    def admin(self, settings: Settings) -> list[socket.socket]:
        """Return the open sockets of the admin address, if there is one."""
        return [each for key in self._admin(settings) for each in self._open.get(key, ())]

    def keep_for(self, settings: Settings) -> None:
        """Close what the settings do not name, and let none be transparent that is not to be.

        Unix sockets get the modes of the settings.
        """
        keys = self._wanted(settings)
        for key in [key for key in self._open if key not in keys and key[1] != _CONTROL]:
            self._close(key[0], self._open.pop(key))
        for key in [key for key in self._passing if not keys.get(key)]:
            self._passing.remove(key)
            for each in self._open.get(key, ()):
                set_transparent(each, on=False)
        modes = self._modes(settings)
        for key, found in self._open.items():
            sockets.set_mode(found, key[0], modes.get(key, sockets.MODE))

    def _wanted(self, settings: Settings) -> dict[Key, bool]:
        """Return the keys of all that the settings name, and which of these are transparent."""
        of_listeners = zip(self._by_listener(settings), settings.listeners.values(), strict=True)
        keys = {key: each.transparent for its_keys, each in of_listeners for key in its_keys}
        return keys | dict.fromkeys(self._admin(settings), False)

    def _modes(self, settings: Settings) -> dict[Key, int]:
        """Return the modes of the listeners that name one."""
        of_listeners = zip(self._by_listener(settings), settings.listeners.values(), strict=True)
        return {key: int(each.mode, 8) for keys, each in of_listeners if each.mode for key in keys}

    def _by_listener(self, settings: Settings) -> list[list[Key]]:
        """Return the keys of each listener."""
        on_ipv4 = self._ports_on_ipv4(settings)
        seen: Counter[Address] = Counter()
        found = []
        for listener in settings.listeners.values():
            found.append(_keys(listener.address, seen[listener.address], on_ipv4))
            seen[listener.address] += 1
        # What is open at one address stays with the listener at all of them that takes its clients
        # now: were it closed, those that have connected and are not accepted would be refused.
        wanted = {key for keys in found for key in keys}.union(self._admin(settings))
        for key in self._known():
            if key not in wanted and key[1] != _ADMIN:
                taking = (keys for keys in found if any(_covers(each[0], key[0]) for each in keys))
                next(taking, []).append(key)
        return found

    def _admin(self, settings: Settings) -> list[Key]:
        """Return the keys of the admin address; none if there is no such."""
        if settings.admin.address == Address():
            return []
        return _keys(settings.admin.address, _ADMIN, self._ports_on_ipv4(settings))

    def _ports_on_ipv4(self, settings: Settings) -> set[int]:
        """Return the ports at which somebody else than `[::]` wants IPv4, systemd among them."""
        given = {
            each.getsockname()[1]
            for found in self._given.values()
            for each in found
            if each.family == socket.AF_INET
        }
        addresses = [
            settings.admin.address,
            *(each.address for each in settings.listeners.values()),
        ]
        return ports_on_ipv4(addresses) | given

    def close_listeners(self) -> None:
        """Let no client in any more."""
        for key in [key for key in self._open if key[1] >= 0]:
            self._close(key[0], self._open.pop(key))

    def close(self) -> None:
        """Close all."""
        for (address, _), found in self._open.items():
            self._close(address, found)
        self._open.clear()

    def pass_on(self) -> tuple[list[tuple[str, int, list[int]]], dict[str, list[int]]]:
        """Return the descriptors for the supervisor of another version, as `Inherited` has them."""
        opened = [
            (str(address), position, [each.fileno() for each in found])
            for (address, position), found in self._open.items()
            if not address.given
        ]
        given = {name: [each.fileno() for each in found] for name, found in self._given.items()}
        return opened, given

    def keep_to_ourselves(self, settings: Settings) -> None:
        """Be the only one that has them, and close what the settings do not name."""
        self.shared = False
        for (text, _), found in self._inherited.items():
            self._close(Address.parse(text), found)
        self._inherited.clear()
        self.keep_for(settings)

    def _close(self, address: Address, found: list[socket.socket]) -> None:
        if self.shared:
            for each in found:
                each.close()
            return
        if address.given:
            return  # systemd's stay open: they may be named again
        for each in found:
            # At once, for the workers' copies too: they will hear of it a little later.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        sockets.close(found, address)


def _adopt(descriptors: list[int]) -> list[socket.socket]:
    return [sockets.adopt(each) for each in descriptors]


def _let_pass(found: list[socket.socket]) -> None:
    """Take connections to other machines, too; raises OSError if we may not."""
    for each in found:
        set_transparent(each)


def _covers(every: Address, address: Address) -> bool:
    """Tell whether one is every IPv4 or IPv6 address, and the other is one of these."""
    return (
        every.host in ("::", "0.0.0.0")  # noqa: S104
        and every.port == address.port > 0
        and not address.is_name
        and (":" in every.host) == (":" in address.host)
    )


def _keys(address: Address, position: int, on_ipv4: Container[int]) -> list[Key]:
    """Return the key of an address, and that of its IPv4 half if it has one to itself."""
    ipv4 = address.all_of_ipv4
    if ipv4 is None or not address.port or address.port in on_ipv4:
        return [(address, position)]
    return [(address, position), (ipv4, position)]
