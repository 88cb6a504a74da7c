"""The TLS and trust rules of a listener."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.xclient_xforward import AttributeCommands
from smtpproxy.net.peer import Peer

Network = IPv4Network | IPv6Network


def is_in(host: str, networks: tuple[Network, ...]) -> bool:
    """Return whether an IP address, if not empty, is in one of the networks."""
    if not (networks and host):
        return False
    ip = ip_address(host.partition("%")[0])
    return any(ip in network for network in networks)


@dataclass(frozen=True, slots=True)
class ListenerSecurity:
    """The TLS and trust rules of a listener that has any."""

    client: ssl.SSLContext | None = None
    """The TLS context for clients."""
    implicit: bool = False
    """Whether clients use implicit TLS."""
    backend: ssl.SSLContext | None = None
    """The TLS context for STARTTLS with the backend."""
    backend_name: str = ""
    """The name that the backend's certificate must be for; empty for the server's address."""
    proxies: tuple[Network, ...] = ()
    """The networks whose clients must send a PROXY header."""
    probes: tuple[Network, ...] = ()
    """The networks of health probes, which the proxy answers itself (`net.probe_session`)."""
    trusted: tuple[Network, ...] = ()
    """The networks whose clients may send XCLIENT and XFORWARD."""
    trusted_policy: SessionPolicy | None = None
    """The policy for clients in `trusted`."""
    introduce: Callable[[Peer], AttributeCommands] | None = None
    """Makes the XCLIENT or XFORWARD commands that pass a client's address to the backend."""
    handshake_s: float = 30.0
    """The time limit of a TLS handshake."""
    transparent: bool = False
    """Whether clients connect to other addresses and are redirected here."""
    own_port: int = 0
    """The listener's port if known; a client that connects to it means the proxy itself."""

    @property
    def keeps_waiting(self) -> bool:
        """Whether a client needs a `PreSession` before its session can start."""
        return bool(self.proxies or self.probes) or self.implicit or self.transparent

    def policy_for(self, peer: Peer) -> SessionPolicy | None:
        """Return the policy for a trusted client; None for another one."""
        return self.trusted_policy if is_in(peer.host, self.trusted) else None
