"""Makes the TLS contexts and the trust rules of sessions from the settings."""

from collections.abc import Callable, Iterable
from functools import partial

from smtpproxy.config.schema import BackendSettings, ListenerSettings, Settings
from smtpproxy.config.schema import NetworkSetting as Written
from smtpproxy.core.policy import BackendTls, ClientTls, SessionPolicy
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.client_attributes import ClientAttributes
from smtpproxy.net.listener_security import ListenerSecurity, Network
from smtpproxy.net.proxy_protocol import make_v1, make_v2
from smtpproxy.tls import contexts

CLIENT_TLS = {
    "off": ClientTls.HIDDEN,
    "starttls": ClientTls.OFFERED,
    "implicit": ClientTls.ACTIVE,
    "passthrough": ClientTls.PASSED,
}
BACKEND_TLS = {
    "off": BackendTls.OFF,
    "opportunistic": BackendTls.OPPORTUNISTIC,
    "starttls": BackendTls.REQUIRED,
    "implicit": BackendTls.IMPLICIT,
}
_HEADERS = {"proxy-v1": make_v1, "proxy-v2": make_v2}


def backend_transport(settings: Settings, backend: BackendSettings) -> BackendTransport | None:
    """Return the transport of a backend; None if it uses plain connections."""
    header = _HEADERS.get(backend.identity)
    transparent = backend.identity == "transparent"
    original = any(server.is_original for server in backend.servers)
    implicit = backend.tls == "implicit"
    if not (header or transparent or original or implicit or backend.source):
        return None
    return BackendTransport(
        header=header,
        transparent=transparent,
        context=contexts.for_backend(backend) if implicit else None,
        server_name=backend.server_name,
        source=backend.source,
        handshake_s=settings.timeouts.tls_handshake,
    )


def listener_security(
    settings: Settings,
    listener: ListenerSettings,
    backend: BackendSettings,
    trusted_policy: Callable[[], SessionPolicy],
) -> ListenerSecurity | None:
    """Return what the sessions of a listener need for TLS and trust; None if nothing.

    Args:
        settings: The settings.
        listener: The listener.
        backend: Its backend.
        trusted_policy: Makes the policy for clients that may send XCLIENT.
    """
    introduces = backend.identity in ("xclient", "xforward")
    in_hello = backend.tls in ("opportunistic", "starttls")
    needed = listener.proxy_protocol or listener.xclient or listener.probes or listener.transparent
    if listener.tls == backend.tls == "off" and not (introduces or needed):
        return None
    ends_here = listener.tls in ("starttls", "implicit")
    notes_names = backend.identity == "proxy-v2"
    return ListenerSecurity(
        client=contexts.for_clients(listener, notes_names=notes_names) if ends_here else None,
        implicit=listener.tls == "implicit",
        backend=contexts.for_backend(backend) if in_hello else None,
        backend_name=backend.server_name,
        proxies=_networks(listener.proxy_protocol),
        probes=_networks(listener.probes),
        trusted=_networks(listener.xclient),
        trusted_policy=trusted_policy() if listener.xclient else None,
        introduce=(
            partial(ClientAttributes, backend.identity.upper().encode()) if introduces else None
        ),
        handshake_s=settings.timeouts.tls_handshake,
        transparent=listener.transparent,
        own_port=listener.address.port,
    )


def _networks(listed: Iterable[Written]) -> tuple[Network, ...]:
    return tuple(each.parsed() for each in listed)
