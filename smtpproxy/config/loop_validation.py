"""Checks for loops: a server that is one of the listeners, so that the proxy connects to itself.

Any value may be BAD here; its problem has been reported already.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence

from smtpproxy.config.address import Address, canonical
from smtpproxy.config.decoding import BAD, KeyProblem, dotted, show
from smtpproxy.config.own_addresses import is_own
from smtpproxy.config.schema import Settings

LookUp = Callable[[str], Sequence[str]]
"""Returns the IP addresses of a host name."""
ANY = ("0.0.0.0", "::")  # noqa: S104
LOCALHOST = ("127.0.0.1", "::1")


def problems(settings: Settings, look_up: LookUp) -> Iterator[KeyProblem]:
    """Yield the servers that are listeners: the key path of each, and the problem."""
    if BAD in (settings.listeners, settings.backends):
        return
    listening = [
        (name, each.address)
        for name, each in settings.listeners.items()
        if each is not BAD and each.address is not BAD
    ]
    for name, backend in settings.backends.items():
        servers = [] if backend is BAD or backend.servers is BAD else backend.servers
        for number, server in enumerate(servers):
            listener = "" if server is BAD else _listener_at(server, listening, look_up)
            if listener:
                key_path = dotted(("listeners", listener))
                text = f"{show(str(server))} leads back to {key_path}"
                text = f"{text}: each connection to it would make another one"
                yield ("backends", name, "servers", number), text


def look_up(host: str) -> Sequence[str]:
    """Resolve a host name; this may take many seconds."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return [str(name[0]) for *_, name in found]


def no_look_up(host: str) -> Sequence[str]:  # noqa: ARG001  a LookUp
    """Resolve no name, because that could take long."""
    return ()


def _listener_at(server: Address, listening: Sequence[tuple[str, Address]], look_up: LookUp) -> str:
    """Return the name of the listener that a server leads to; empty if there is none."""
    if server.is_original:  # a client that connects to the proxy itself is refused at run time
        return ""
    if server.is_unix:
        path = os.path.realpath(server.path)
        same = (
            name for name, each in listening if each.is_unix and os.path.realpath(each.path) == path
        )
        return next(same, "")
    at_port = [(name, each) for name, each in listening if each.port == server.port]
    hosts = _hosts(server, look_up) if at_port else ()
    taken = {own for _, each in at_port for own in _hosts(each, no_look_up)}
    # A listener at `::` accepts IPv4 clients too, unless another one does at the same port.
    both = not any("." in own for own in taken)
    for name, each in at_port:
        if any(_takes(_hosts(each, no_look_up), host, both=both) for host in hosts):
            return name
    return ""


def _takes(listening: Sequence[str], host: str, *, both: bool) -> bool:
    """Return whether a listener at these addresses accepts connections to `host`."""
    is_any = ANY[":" in host] in listening or (both and "::" in listening)
    return host in listening or (is_any and is_own(host))


def _hosts(address: Address, look_up: LookUp) -> Sequence[str]:
    if address.host == "localhost":
        return LOCALHOST
    return (
        [canonical(each) for each in look_up(address.host)] if address.is_name else [address.host]
    )
