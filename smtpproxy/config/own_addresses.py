"""Own addresses: which IP addresses are this machine's."""

import socket
from ipaddress import ip_address

_NOBODYS = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849), which no machine has."""


def is_own(host: str) -> bool:
    """Tell whether an IP address is one of this machine's."""
    ip = ip_address(host)
    if ip.is_loopback:
        return True
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    if not _can_bind(family, host):
        return False
    # Where net.ipv4.ip_nonlocal_bind lets any address be bound, the way to it tells.
    return not _can_bind(family, _NOBODYS[family]) or _comes_from_itself(family, host)


def _can_bind(family: socket.AddressFamily, host: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _comes_from_itself(family: socket.AddressFamily, host: str) -> bool:
    """Tell whether what is sent there is sent from there; nothing is sent for that."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == host.partition("%")[0])
