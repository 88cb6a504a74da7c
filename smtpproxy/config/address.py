"""Addresses of listeners and servers: `HOST:PORT`, `unix:/PATH` and, for listeners, `fd:NAME`.

Each error text says what to write instead. Names are not resolved here.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from msgspec import Struct

# sockaddr_un has room for 108 bytes, including the final NUL.
_UNIX_PATH_BYTES = 107
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)

ORIGINAL = "original"
"""Instead of a server's address: the address that the client connected to."""

_MAPPED_BITS = 96
"""The length of the prefix of IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2)."""
NAT64 = IPv6Network("64:ff9b::/96")
"""The prefix that any NAT64 may use (RFC 6052 section 2.1)."""
NAT64_BITS = (32, 40, 48, 56, 64, 96)
"""The possible lengths of a NAT64 prefix (RFC 6052 section 2.2)."""


@lru_cache(maxsize=256)
def canonical(host: str) -> str:
    """Return the canonical text of an IP address, which is compared, logged and passed on.

    An IPv6 address is written as RFC 5952 has it, an IPv4-mapped one (`::ffff:192.0.2.1`) as the
    IPv4 address. Equal texts give the same object, which saves memory.

    Raises:
        ValueError: The text is not an IP address.
    """
    return str(_unmapped(ip_address(host)))


def canonical_network(text: str) -> IPv4Network | IPv6Network:
    """Parse a network; an address is a network of one, and IPv4-mapped addresses become IPv4.

    Raises:
        ValueError: The text is not a network; the message is for the user.
    """
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(_not_a_network(text)) from None
    first = _unmapped(network.network_address)
    if network.version == first.version or network.prefixlen < _MAPPED_BITS:
        return network
    return ip_network(f"{first}/{network.prefixlen - _MAPPED_BITS}")


def _not_a_network(text: str) -> str:
    try:
        interface = ip_interface(text)
    except ValueError:
        return 'is not a network; write, for example, "10.0.0.0/8", "2001:db8::/32" or "192.0.2.1"'
    return (
        f'is an address inside a network; write "{interface.network}" for the network,'
        f' "{interface.ip}" for the address'
    )


def ipv4_in_nat64(
    ip: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]
) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that a NAT64 embedded in an address (RFC 6052 section 2.2).

    An address outside these networks and outside 64:ff9b::/96 is returned unchanged.
    """
    for network in (NAT64, *networks):
        if ip in network:
            # Octet 8 is never part of the IPv4 address; a prefix of 96 bits includes it.
            octets = ip.packed[:8] + ip.packed[9:]
            begin = min(network.prefixlen // 8, 11)
            return IPv4Address(octets[begin : begin + 4])
    return ip


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


class Address(Struct, frozen=True):
    """A TCP address, the path of a Unix socket, or the name of a socket that systemd passes.

    Attributes that do not apply are empty or 0.
    """

    host: str = ""
    """An IP address in its canonical text, a host name, or ORIGINAL."""
    port: int = 0
    path: str = ""
    """The path of a Unix socket."""
    given: str = ""
    """The name of a socket that systemd passes."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `127.0.0.1:25`, `[::1]:25`, `host.example:25`, `unix:/run/x.sock` or `fd:NAME`.

        IP addresses become canonical, so that equal addresses compare equal.

        Raises:
            ValueError: The text is none of these; the message is for the user.
        """
        if text.startswith("unix:"):
            return cls(path=_unix_path(text.removeprefix("unix:")))
        if text.startswith("fd:"):
            return cls(given=_given_name(text.removeprefix("fd:")))
        host, port = _split(text)
        return cls(host=host, port=_port(port))

    @property
    def is_unix(self) -> bool:
        """Whether this is the path of a Unix socket."""
        return bool(self.path)

    @property
    def certified_name(self) -> str:
        """The name that the certificate of a server must have, unless `server_name` is set."""
        return self.host or "localhost"

    @property
    def is_original(self) -> bool:
        """Whether it is `original`, the address that the client connected to."""
        return self.host == ORIGINAL and not self.port

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that must be resolved."""
        return bool(self.host) and not self.is_original and _ip(self.host) is None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it."""
        if self.is_unix or self.host == "localhost":
            return True
        ip = _ip(self.host)
        return ip is not None and ip.is_loopback

    @property
    def all_of_ipv4(self) -> "Address | None":
        """`0.0.0.0` with the same port, if this is `[::]`; else None."""
        return Address(host="0.0.0.0", port=self.port) if self.host == "::" else None  # noqa: S104

    def __str__(self) -> str:
        if self.given:
            return f"fd:{self.given}"
        if self.is_unix:
            return f"unix:{self.path}"
        if self.is_original:
            return ORIGINAL
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ports_on_ipv4(listeners: Iterable[Address]) -> set[int]:
    """Return the ports at which a listener has an IPv4 address, without port 0.

    At all other ports a listener at `[::]` accepts IPv4 clients too.
    """
    return {
        each.port
        for each in listeners
        if each.host == "localhost" or isinstance(_ip(each.host), IPv4Address)
    } - {0}


def parse_listener(text: str) -> Address:
    """Parse an address to listen on: an IP address or localhost, any port (0: a free one)."""
    address = Address.parse(text)
    if address.given or address.is_unix or address.host == "localhost" or _ip(address.host):
        return address
    raise ValueError(
        f'is a name; a listener needs an IP address of this machine, such as "127.0.0.1:'
        f'{address.port}" or "[::1]:{address.port}" ("[::]:{address.port}" for all)'
    )


def parse_server(text: str) -> Address:
    """Parse an address to connect to: a host that can be connected to and a port, or ORIGINAL."""
    if text == ORIGINAL:
        return Address(host=ORIGINAL)
    address = Address.parse(text)
    if address.given:
        raise ValueError('is a listening socket; a server needs an address, "127.0.0.1:25"')
    if not address.is_unix and address.port == 0:
        raise ValueError(
            'has port 0; a server needs its real port, 1 to 65535, such as "127.0.0.1:25"'
        )
    ip = _ip(address.host)
    if ip is not None and ip.is_unspecified:
        raise ValueError(
            f'means "any address"; a server needs one, such as "127.0.0.1:{address.port}"'
        )
    return address


def _unix_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError('needs the whole path of the socket, such as "unix:/run/smtp.sock"')
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > _UNIX_PATH_BYTES:
        raise ValueError(f"has a path that is not valid: at most {_UNIX_PATH_BYTES} bytes, no NUL")
    return path


def _given_name(name: str) -> str:
    """Check the name of a socket (sd_listen_fds_with_names(3))."""
    if re.fullmatch(r"[!-9;-~]{1,255}", name, re.ASCII):
        return name
    raise ValueError('needs the name of a socket that systemd passes, such as "fd:smtp"')


def _split(text: str) -> tuple[str, str]:
    """Split a text into a valid host and a port that is not checked yet."""
    bracketed = re.fullmatch(r"\[([^]]*)\](?::(.*))?", text)
    if bracketed:
        ip = _ip(bracketed[1])
        if not isinstance(ip, IPv6Address):
            raise ValueError('has no IPv6 address in its brackets; write, for example, "[::1]:25"')
        return canonical(bracketed[1]), _given_port(text, bracketed[2])
    if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII):
        raise ValueError(
            f'has no host; write, for example, "127.0.0.1:{text}"; a listener at "[::]:{text}"'
            " accepts clients on every address"
        )
    if text.count(":") > 1:
        raise ValueError(
            f'is not HOST:PORT; an IPv6 address goes in brackets: "{_in_brackets(text)}"'
        )
    host, colon, port = text.partition(":")
    if not host or host == "*":
        raise ValueError(f'has no host; write, for example, "127.0.0.1:{port or 25}"')
    return _host(host), _given_port(text, port if colon else None)


def _given_port(text: str, port: str | None) -> str:
    if not port:
        raise ValueError(f'has no port; write, for example, "{text.rstrip(":")}:25"')
    return port


def _port(port: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(
            'has no valid port after its colon: a number up to 65535, such as "127.0.0.1:25"'
        )
    return int(port)


def _host(host: str) -> str:
    ip = _ip(host)
    if ip is not None:
        return str(ip)
    # A last label of digits only is never a host name (RFC 3696 section 2): a mistyped address.
    if re.fullmatch(r"(.*\.)?[0-9]+", host):
        raise ValueError('is not an IPv4 address: four numbers from 0 to 255, such as "192.0.2.1"')
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ValueError(
            "has no valid host name: letters, digits, hyphens and dots (or xn--...), such as"
            ' "mta.example.org"'
        )
    return host.lower()


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _in_brackets(text: str) -> str:
    """Return the most likely meaning of an IPv6 address without brackets."""
    host, _, port = text.rpartition(":")
    if port and _ip(host) and (int(port) if port.isdecimal() else 0) in (25, 465, 587, 2525):
        return f"[{host}]:{port}"
    return f"[{text}]:25" if _ip(text) else "[::1]:25"
