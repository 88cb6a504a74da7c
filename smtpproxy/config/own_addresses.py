"""Which IP addresses belong to this machine."""

import socket
from ipaddress import ip_address

_NOBODYS = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation, which no machine has (RFC 5737, RFC 3849)."""


def is_own(host: str) -> bool:
    """Return whether an IP address belongs to this machine."""
    ip = ip_address(host)
    if ip.is_loopback:
        return True
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    if not _can_bind(family, host):
        return False
    # With net.ipv4.ip_nonlocal_bind any address can be bound; then the route decides.
    return not _can_bind(family, _NOBODYS[family]) or _comes_from_itself(family, host)


def _can_bind(family: socket.AddressFamily, host: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _comes_from_itself(family: socket.AddressFamily, host: str) -> bool:
    """Return whether packets to this address are sent from it; nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == host.partition("%")[0])
