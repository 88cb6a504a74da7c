"""Checks across settings of TLS and identity, and warnings about open relays and weak TLS.

Any value may be BAD in `problems`; its problem has been reported already.
"""

from collections.abc import Iterator

from smtpproxy.config.certificate_validation import certificates_of
from smtpproxy.config.decoding import BAD, KeyProblem, show
from smtpproxy.config.own_addresses import is_own
from smtpproxy.config.schema import (
    CERTIFICATE_FILES,
    BackendSettings,
    ListenerSettings,
    Settings,
)
from smtpproxy.config.toml_lines import KeyPath


def problems(settings: Settings) -> Iterator[KeyProblem]:
    """Yield the problems across settings: the key path of each, and its text."""
    backends = {} if settings.backends is BAD else settings.backends
    for name, backend in backends.items():
        if backend is not BAD:
            yield from _backend_tls(backend, ("backends", name))
            yield from _servers(backend, ("backends", name))
    for name, listener in ({} if settings.listeners is BAD else settings.listeners).items():
        if listener is BAD:
            continue
        key_path = ("listeners", name)
        yield from _listener_tls(listener, key_path)
        if listener.tls in ("starttls", "implicit"):
            yield from _old_clients(listener, key_path)
        yield from _unix_networks(listener, key_path)
        its = _backend_of(listener, backends)
        if its is not None:
            yield from _pair(listener, its, key_path)


def exposed_listeners(settings: Settings) -> list[str]:
    """Return the listeners for other machines whose backend sees only the proxy's address.

    A backend that trusts this address relays for everyone. XFORWARD does not help: it is for the
    MTA's log, not for its access rules.
    """
    return [
        name
        for name, listener in settings.listeners.items()
        if settings.backends[listener.backend].identity in ("none", "xforward")
        and not (listener.address.is_loopback and _has_its_own_clients_only(listener))
    ]


def _has_its_own_clients_only(listener: ListenerSettings) -> bool:
    """Return whether the connecting addresses are those of the clients.

    They are not if a proxy in front names the clients, or if the kernel redirects connections.
    """
    return not (listener.proxy_protocol or listener.xclient or listener.transparent)


def weak_listeners(settings: Settings) -> list[tuple[str, str]]:
    """Return the listeners that allow weak TLS: the name, and the reason."""
    return [
        (name, "old cipher suites and short keys are allowed")
        if listener.minimum_tls >= "1.2"
        else (name, f"TLS {listener.minimum_tls} is allowed")
        for name, listener in settings.listeners.items()
        if listener.ciphers == "legacy"
    ]


def weak_backends(settings: Settings) -> list[tuple[str, str]]:
    """Return the backends with weak TLS: the name, and the reason."""
    found = []
    for name, backend in settings.backends.items():
        if backend.minimum_tls in ("1.0", "1.1"):
            found.append((name, f"TLS {backend.minimum_tls} is allowed"))
        if backend.tls in ("starttls", "implicit") and not backend.verify:
            found.append((name, "its certificate is not verified"))
    return found


def _backend_of(
    listener: ListenerSettings, backends: dict[str, BackendSettings]
) -> BackendSettings | None:
    found = backends.get(listener.backend) if isinstance(listener.backend, str) else None
    if listener.backend == "" and len(backends) == 1:
        (found,) = backends.values()
    return None if found is BAD else found


def _listener_tls(listener: ListenerSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    ends_here = listener.tls in ("starttls", "implicit")
    if ends_here and listener.certificate == "":
        text = f'is missing; tls = "{listener.tls}" needs a PEM file with a certificate'
        yield (*key_path, "certificate"), text
    if listener.tls in ("off", "passthrough"):
        for key, unset in _UNSET.items():
            if getattr(listener, key) not in (unset, BAD):
                yield (*key_path, key), f'is not used with tls = "{listener.tls}"; leave it out'
    if listener.tls == "off" and listener.require_tls is True:
        yield (*key_path, "require_tls"), 'no client can start TLS with tls = "off"'
    if listener.tls == "off" and listener.auth == "tls-only":
        yield (*key_path, "auth"), 'no client can authenticate with tls = "off"; write "hidden"'


def _old_clients(listener: ListenerSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    """Yield contradictions of the versions, ciphers and certificates of TLS with clients."""
    if listener.minimum_tls in ("1.0", "1.1") and listener.ciphers not in ("legacy", BAD):
        text = f'needs ciphers = "legacy": TLS {listener.minimum_tls} has no others'
        yield (*key_path, "minimum_tls"), text
    if listener.minimum_tls == "1.3" and listener.ciphers == "legacy":
        yield (
            (*key_path, "ciphers"),
            'is not used: with minimum_tls = "1.3" there are no old ciphers',
        )
    for where, pair in certificates_of(listener, key_path):
        if pair.ecdsa_key not in ("", BAD) and pair.ecdsa_certificate == "":
            yield (*where, "ecdsa_key"), "is not used without ecdsa_certificate"


_UNSET: dict[str, object] = {
    **dict.fromkeys(CERTIFICATE_FILES, ""),
    "sni": {},
    "minimum_tls": "1.2",
    "ciphers": "intermediate",
}
"""The settings of TLS with clients, with the values they have if they are left out."""


def _unix_networks(listener: ListenerSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    if listener.address is BAD:
        return
    if not listener.address.is_unix:
        if listener.mode not in ("", BAD):
            yield (*key_path, "mode"), "is used for a Unix socket only"
        return
    for key in ("proxy_protocol", "probes", "xclient"):
        if getattr(listener, key) not in ([], BAD):
            yield (*key_path, key), "is not used for a Unix socket: its clients have no addresses"
    if listener.transparent is True:
        yield (*key_path, "transparent"), "is not used for a Unix socket"


def _backend_tls(backend: BackendSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    strict = backend.tls in ("starttls", "implicit")
    if BAD not in (backend.tls, backend.verify) and not (strict and backend.verify):
        why = "verify = false" if strict else f'tls = "{backend.tls}"'
        for key in ("ca_file", "server_name"):
            if getattr(backend, key) not in ("", BAD):
                yield (*key_path, key), f"is not used: with {why} no certificate is verified"
    if backend.tls == "off":
        unset = {"minimum_tls": "1.2", "client_certificate": "", "client_key": ""}
        for key, default in unset.items():
            if getattr(backend, key) not in (default, BAD):
                yield (*key_path, key), 'is not used with tls = "off"; leave it out'
    elif backend.client_key not in ("", BAD) and backend.client_certificate == "":
        yield (*key_path, "client_key"), "is not used without client_certificate"


def _servers(backend: BackendSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    if backend.servers is BAD or BAD in backend.servers:
        return
    where = (*key_path, "servers")
    if any(each.is_original for each in backend.servers) and len(backend.servers) > 1:
        yield where, '"original" must be the only server'
    if any(each.is_original for each in backend.servers) and backend.health_check_interval not in (
        0,
        BAD,
    ):
        yield (*key_path, "health_check_interval"), 'cannot be used with servers = ["original"]'
    if backend.identity == "transparent" and any(each.is_unix for each in backend.servers):
        yield where, 'a Unix socket has no addresses; identity = "transparent" needs IP'
    if backend.source not in ("", BAD):
        yield from _source(backend, (*key_path, "source"))


def _source(backend: BackendSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    """Yield what the address to connect from contradicts."""
    if backend.identity == "transparent":
        yield (
            key_path,
            'is not used: with identity = "transparent" connections come from the client',
        )
    for server in backend.servers:
        if server.is_unix:
            yield key_path, f"is not used: {server} is a Unix socket"
        elif not (server.is_name or server.is_original) and (":" in server.host) != (
            ":" in backend.source
        ):
            yield key_path, f"cannot connect to {server}: one is IPv4, the other IPv6"


def foreign_sources(settings: Settings) -> list[tuple[str, str]]:
    """Return the backends whose `source` is no address of this machine, and a text.

    It is no problem: a cluster's address may come to this machine later.
    """
    return [
        (name, f"source {backend.source} is not an address of this machine now")
        for name, backend in settings.backends.items()
        if backend.source and not is_own(backend.source)
    ]


def _pair(
    listener: ListenerSettings, backend: BackendSettings, key_path: KeyPath
) -> Iterator[KeyProblem]:
    name = f"the backend {show(listener.backend)}" if listener.backend else "its backend"
    servers = [] if backend.servers is BAD else backend.servers
    original = any(each is not BAD and each.is_original for each in servers)
    if original and listener.transparent is False:
        yield (*key_path, "transparent"), f'must be true: the servers of {name} are "original"'
    named = backend.identity in ("proxy-v1", "proxy-v2", "transparent")
    if named and listener.address is not BAD and listener.address.is_unix:
        text = f'is a Unix socket, whose clients have no addresses; {name} has identity = "{{}}"'
        yield (*key_path, "address"), text.format(backend.identity)
    if listener.tls == "passthrough" and backend.tls not in ("off", BAD):
        text = f'needs tls = "off" in {name}: else there is nothing to pass'
        yield (*key_path, "tls"), text
