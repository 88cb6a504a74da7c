"""How the connections of a service's sessions come inside TLS, and whom it believes."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.xclient_xforward import AttributeCommands
from smtpproxy.net.peer import Peer

Network = IPv4Network | IPv6Network


def is_in(host: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether an IP address is in one of the networks."""
    if not (networks and host):
        return False
    ip = ip_address(host.partition("%")[0])
    return any(ip in network for network in networks)


@dataclass(frozen=True, slots=True)
class ListenerSecurity:
    """Made once for each listener that has anything of this.

    client: of the listener's certificates; implicit: clients begin with TLS.
    backend: for STARTTLS with the backend, whose certificate is to be for `backend_name`.
    proxies: who must send a PROXY header.  trusted: who gets `trusted_policy`.
    probes: who is answered by the proxy alone (`smtpproxy.net.probe_session`).
    introduce: makes the client known to the backend by XCLIENT or XFORWARD.  (What a trusted client
    says by XCLIENT makes it another client; see `Session`.)
    handshake_s: how long a handshake may take.
    transparent: clients come here on their way to others.
    own_port: the listener's, if it is known: who wants that one wants the proxy itself.
    """

    client: ssl.SSLContext | None = None
    implicit: bool = False
    backend: ssl.SSLContext | None = None
    backend_name: str = ""
    proxies: tuple[Network, ...] = ()
    probes: tuple[Network, ...] = ()
    trusted: tuple[Network, ...] = ()
    trusted_policy: SessionPolicy | None = None
    introduce: Callable[[Peer], AttributeCommands] | None = None
    handshake_s: float = 30.0
    transparent: bool = False
    own_port: int = 0

    @property
    def keeps_waiting(self) -> bool:
        """Tell whether something must come, or be found out, before a session can begin."""
        return bool(self.proxies or self.probes) or self.implicit or self.transparent

    def policy_for(self, peer: Peer) -> SessionPolicy | None:
        """Return the rules of a client that is trusted, or None."""
        return self.trusted_policy if is_in(peer.host, self.trusted) else None
