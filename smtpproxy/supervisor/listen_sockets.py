"""The listening sockets of the service, which stay open as long as the settings name them.

The sockets of the listeners are closed when the service drains; those of the admin address and the
control socket stay open.

A listener at `[::]` has a second socket for IPv4, unless another listener uses IPv4 at its port.
So a reload can give that socket to another listener without closing it.  The socket of a single
address also stays open when a listener at all addresses replaces its listener.
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Container

from smtpproxy.config.address import Address, ports_on_ipv4
from smtpproxy.config.schema import Settings
from smtpproxy.control_socket import locations
from smtpproxy.log import events, log
from smtpproxy.net import binding
from smtpproxy.net.tproxy import set_transparent
from smtpproxy.supervisor import socket_activation
from smtpproxy.supervisor.upgrade import Inherited

Key = tuple[Address, int]
"""An address, and its position among equal ones (each port 0 is a different port)."""
_ADMIN, _CONTROL = -1, -2
"""The positions of the admin address and of the control socket."""


class ListenSockets:
    """Opens listening sockets, or takes them from systemd or an older supervisor.

    Args:
        inherited: What the supervisor of an older version has passed, if any.
    """

    def __init__(self, inherited: Inherited | None = None) -> None:
        self._shared = inherited is not None  # with another supervisor
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
        """The addresses of the listeners, with their actual ports."""
        found = (each for key, each in self._open.items() if key[1] >= 0)
        return [binding.name_of(each) for listening in found for each in listening]

    def open_control(self, given: Address | None) -> list[socket.socket]:
        """Open the control socket, which stays open until the service ends.

        Args:
            given: Its address; None for the default one, without which the service runs if it
                cannot be opened.

        Returns:
            Its sockets; none if the default one cannot be opened, which is logged.

        Raises:
            OSError: The given one cannot be opened, which is logged.
        """
        address, reason = given, "no directory for it"
        try:
            if address is None and (path := locations.of_service(os.environ)):
                address = Address(path=str(path))
            if address is not None:
                key = (address, _CONTROL)
                self._open[key] = self._open_one(key, False, binding.MODE)
                return self._open[key]
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if given is not None:
                events.CANNOT_LISTEN.log(log.get(), address=str(address), reason=reason)
                raise
        events.NO_CONTROL_SOCKET.log(
            log.get(),
            address="" if address is None else str(address),
            reason=f"{reason}; set another path with --control",
        )
        return []

    def open(self, settings: Settings) -> list[tuple[str, str]]:
        """Open the sockets that the settings name and that are not open yet.

        Returns:
            The listener's name and the address of each new socket.

        Raises:
            OSError: A socket cannot be opened, which is logged.  Call `keep_for` with the previous
                settings to undo the changes.
        """
        added: dict[Key, list[socket.socket]] = {}
        wanted, modes = self._wanted(settings), self._modes(settings)
        for key, transparent in wanted.items():
            try:
                if key not in self._open:
                    added[key] = self._open_one(key, transparent, modes.get(key, binding.MODE))
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
            (names[key], binding.name_of(each))
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
            # If the port is known, the IPv4 socket has its own key.
            return binding.listen(
                address,
                transparent=transparent,
                with_ipv4=not address.port,
                mode=mode,
                overlapping=self._open_at(address.port),
            )
        if address.given not in self._given:
            raise OSError("systemd has passed no socket of this name")
        found = self._given[address.given]
        if transparent:
            _let_pass(found)
        return found

    def _open_at(self, port: int) -> list[socket.socket]:
        """Return the open sockets at a port, which a reload may overlap before it closes them."""
        return [
            each
            for key, found in self._known().items()
            if key[0].port == port > 0
            for each in found
        ]

    def _known(self) -> dict[Key, list[socket.socket]]:
        """Return all sockets that are open, or inherited and not used yet."""
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
        """Return the open sockets of the admin address; none if it is off."""
        return [each for key in self._admin(settings) for each in self._open.get(key, ())]

    def keep_for(self, settings: Settings) -> None:
        """Close the sockets that the settings do not name, and apply transparency and modes."""
        keys = self._wanted(settings)
        for key in [key for key in self._open if key not in keys and key[1] != _CONTROL]:
            self._close(key[0], self._open.pop(key))
        for key in [key for key in self._passing if not keys.get(key)]:
            self._passing.remove(key)
            for each in self._open.get(key, ()):
                set_transparent(each, on=False)
        modes = self._modes(settings)
        for key, found in self._open.items():
            binding.set_mode(found, key[0], modes.get(key, binding.MODE))

    def _wanted(self, settings: Settings) -> dict[Key, bool]:
        """Return whether each socket that the settings name is transparent, by key."""
        of_listeners = zip(self._by_listener(settings), settings.listeners.values(), strict=True)
        keys = {key: each.transparent for its_keys, each in of_listeners for key in its_keys}
        return keys | dict.fromkeys(self._admin(settings), False)

    def _modes(self, settings: Settings) -> dict[Key, int]:
        """Return the modes that the settings name, by key."""
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
        # A socket at one address stays open for the listener at all addresses that replaces its
        # listener: closing it would reset the clients that are connected but not accepted yet.
        wanted = {key for keys in found for key in keys}.union(self._admin(settings))
        for key in self._known():
            if key not in wanted and key[1] != _ADMIN:
                taking = (keys for keys in found if any(_covers(each[0], key[0]) for each in keys))
                next(taking, []).append(key)
        return found

    def _admin(self, settings: Settings) -> list[Key]:
        """Return the keys of the admin address; none if it is off."""
        if settings.admin.address == Address():
            return []
        return _keys(settings.admin.address, _ADMIN, self._ports_on_ipv4(settings))

    def _ports_on_ipv4(self, settings: Settings) -> set[int]:
        """Return the ports with another IPv4 socket than that of `[::]`, also from systemd."""
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
        """Close the sockets of the listeners."""
        for key in [key for key in self._open if key[1] >= 0]:
            self._close(key[0], self._open.pop(key))

    def close(self) -> None:
        """Close all sockets."""
        for (address, _), found in self._open.items():
            self._close(address, found)
        self._open.clear()

    def pass_on(self) -> tuple[list[tuple[str, int, list[int]]], dict[str, list[int]]]:
        """Return the descriptors for another supervisor: `Inherited.sockets` and `.given`."""
        opened = [
            (str(address), position, [each.fileno() for each in found])
            for (address, position), found in self._open.items()
            if not address.given
        ]
        given = {name: [each.fileno() for each in found] for name, found in self._given.items()}
        return opened, given

    def share(self) -> None:
        """Never shut the sockets down from now on: another supervisor listens on them, too."""
        self._shared = True

    def keep_to_ourselves(self, settings: Settings) -> None:
        """End sharing with the older supervisor, and close what the settings do not name."""
        self._shared = False
        for (text, _), found in self._inherited.items():
            self._close(Address.parse(text), found)
        self._inherited.clear()
        self.keep_for(settings)

    def _close(self, address: Address, found: list[socket.socket]) -> None:
        if self._shared:
            for each in found:
                each.close()
            return
        if address.given:
            return  # systemd's stay open, since a reload may name them again
        for each in found:
            # Stops the workers' copies, too, before the workers get the message.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        binding.close(found, address)


def _adopt(descriptors: list[int]) -> list[socket.socket]:
    return [binding.adopt(each) for each in descriptors]


def _let_pass(found: list[socket.socket]) -> None:
    """Make sockets transparent, to accept connections to other addresses.

    Raises:
        OSError: A privilege is missing.
    """
    for each in found:
        set_transparent(each)


def _covers(every: Address, address: Address) -> bool:
    """Return whether `every` is a wildcard address that includes `address`, at the same port."""
    return (
        every.host in ("::", "0.0.0.0")  # noqa: S104
        and every.port == address.port > 0
        and not address.is_name
        and (":" in every.host) == (":" in address.host)
    )


def _keys(address: Address, position: int, on_ipv4: Container[int]) -> list[Key]:
    """Return the key of an address, and that of its separate IPv4 socket if it has one."""
    ipv4 = address.all_of_ipv4
    if ipv4 is None or not address.port or address.port in on_ipv4:
        return [(address, position)]
    return [(address, position), (ipv4, position)]
