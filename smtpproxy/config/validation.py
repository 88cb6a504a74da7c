"""Checks across settings: addresses, backends, capabilities, limits, trace and admin.

Any value may be BAD here; its problem has been reported already.
"""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from msgspec.structs import astuple

from smtpproxy.config.address import Address
from smtpproxy.config.decoding import BAD, KeyProblem, dotted, instead, show, shown
from smtpproxy.config.schema import (
    AdminSettings,
    BackendSettings,
    ClusterSettings,
    LimitSettings,
    ListenerSettings,
    OtelSettings,
    Settings,
    TraceSettings,
)
from smtpproxy.core.capabilities import NEVER_PASSED

_EVERY = frozenset(("0.0.0.0", "::"))  # noqa: S104
_OTEL_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_CLUSTER_MODULE = "redis.asyncio"
_HOSTS = {"localhost": ("127.0.0.1", "::1")}


def contradictions(
    settings: Settings,
    need_listener: bool,
    need_backend: bool,
    need_trace_directory: bool = True,
) -> Iterator[KeyProblem]:
    """Yield the problems across settings: the key path of each, and the problem."""
    if settings.listeners is not BAD:
        if need_listener and not settings.listeners:
            yield (), 'has no listener; add [listeners.NAME] with address = "127.0.0.1:2525"'
        yield from _repeated_addresses(settings.listeners)
        yield from _hidden_and_allowed(settings.listeners)
        yield from _early_and_refused(settings.listeners)
    if settings.backends is not BAD:
        if need_backend and not settings.backends:
            yield (), 'has no backend; add [backends.NAME] with servers = ["10.0.0.5:25"]'
        for name, backend in settings.backends.items():
            if backend is not BAD and backend.servers == []:
                where = ("backends", name, "servers")
                yield where, 'must have at least one address, such as ["10.0.0.5:25"]'
    if need_backend and settings.backends and BAD not in (settings.listeners, settings.backends):
        yield from _wrong_backends(settings.listeners, list(settings.backends))
        yield from _hidden_chunking(settings.listeners, settings.backends)
    yield from _admin_at_a_listener(settings)
    if settings.limits is not BAD:
        yield from _small_queue(settings.limits)
    if settings.cluster is not BAD:
        yield from _half_a_cluster(settings.cluster)
    yield from _watching(settings, need_trace_directory)


def _repeated_addresses(listeners: Mapping[str, ListenerSettings]) -> Iterator[KeyProblem]:
    """Yield each listener whose address an earlier listener has or covers."""
    first: dict[Address, str] = {}
    for name, listener in listeners.items():
        if listener is BAD or not isinstance(listener.address, Address):
            continue
        if listener.address.host and listener.address.port == 0:  # another port each time
            continue
        other = first.setdefault(listener.address, name)
        if other != name:
            text = f"is {show(str(listener.address))} like that of {dotted(('listeners', other))}"
            yield ("listeners", name, "address"), f"{text}; each listener needs its own"
            continue
        for address, other in first.items():
            if other != name and _overlap(listener.address, address):
                yield ("listeners", name, "address"), _taken(address, other)
                break


def _admin_at_a_listener(settings: Settings) -> Iterator[KeyProblem]:
    address = BAD if settings.admin is BAD else settings.admin.address
    if settings.listeners is BAD or not isinstance(address, Address) or address == Address():
        return
    for name, listener in settings.listeners.items():
        if listener is BAD or not isinstance(listener.address, Address):
            continue
        if _overlap(address, listener.address):
            yield ("admin", "address"), _taken(listener.address, name)
            return


def _taken(address: Address, listener: str) -> str:
    where = "at the same address and port" if address.host else "the same socket"
    place = dotted(("listeners", listener))
    return f"cannot be bound: {show(str(address))} of {place} is {where}"


def _overlap(one: Address, other: Address) -> bool:
    """Return whether two addresses cannot be bound together."""
    if one.is_unix and other.is_unix:
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    if not (one.host and other.host):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    return any(
        (":" in a) == (":" in b) and (a == b or {a, b} & _EVERY)
        for a in _HOSTS.get(one.host, (one.host,))
        for b in _HOSTS.get(other.host, (other.host,))
    )


def superfluous(settings: Settings) -> list[tuple[str, str]]:
    """Return the backends that are never used, or that name a server twice, and the problem."""
    used = {listener.backend for listener in settings.listeners.values()}
    found = [(name, "no listener uses it") for name in settings.backends if name not in used]
    for name, backend in settings.backends.items():
        twice = {str(each) for each in backend.servers if backend.servers.count(each) > 1}
        found += [(name, f"{each} is named twice") for each in sorted(twice)]
    return found


def crowded(settings: Settings) -> list[tuple[str, str]]:
    """Return the backends whose connections one client address can use up, and a hint."""
    most = settings.limits.sessions_per_address
    found = []
    for name, backend in settings.backends.items():
        connections = backend.max_connections
        if connections and not 0 < most <= connections:
            what = f"clients of one address can take all {connections} of max_connections, and wait"
            how = f"for more; set sessions_per_address to {connections} or less"
            found.append((name, f"limits.sessions_per_address is {most}: {what} {how}"))
    return found


def shareless(settings: Settings) -> list[tuple[str, str]]:
    """Return the backends with fewer connections than replicas, and a hint."""
    replicas = settings.cluster.replicas
    found = []
    for name, backend in settings.backends.items():
        if 0 < backend.max_connections < replicas:
            what = f"max_connections is {backend.max_connections}, and cluster.replicas {replicas}"
            how = "while the cluster's store is away, each replica may still open one"
            found.append((name, f"{what}: {how}, {replicas} together"))
    return found


def _wrong_backends(
    listeners: Mapping[str, ListenerSettings], names: list[str]
) -> Iterator[KeyProblem]:
    for name, listener in listeners.items():
        if listener is BAD or listener.backend is BAD:
            continue
        where = ("listeners", name, "backend")
        if listener.backend == "" and len(names) > 1:
            yield where, f"is missing; with several backends name one: {shown(names)}"
        elif listener.backend and listener.backend not in names:
            hint = instead(listener.backend, names, "there is")
            yield where, f"{show(listener.backend)} is not the name of a backend{hint}"


def _hidden_and_allowed(listeners: Mapping[str, ListenerSettings]) -> Iterator[KeyProblem]:
    for name, listener in listeners.items():
        if listener is BAD or listener.capabilities is BAD:
            continue
        hide, allow = listener.capabilities.hide, listener.capabilities.allow
        if hide is BAD or allow is BAD:
            continue
        for position, word in enumerate(allow):
            where = ("listeners", name, "capabilities", "allow", position)
            if word is not BAD and word in hide:
                yield where, f"{show(word)} is hidden as well; write it in one of the two lists"
            elif word is not BAD and (why := NEVER_PASSED.get(word.encode())):
                yield where, f"{show(word)} can never pass: {why}"


def _early_and_refused(listeners: Mapping[str, ListenerSettings]) -> Iterator[KeyProblem]:
    """Yield each listener that offers early pipelining and refuses or hides what it needs."""
    for name, listener in listeners.items():
        if listener is BAD or listener.early_pipelining is not True:
            continue
        where = ("listeners", name, "early_pipelining")
        if listener.sync == "strict":
            yield where, 'cannot be used with sync = "strict", which refuses early commands'
        if listener.capabilities is BAD or listener.capabilities.hide is BAD:
            continue
        for word in ("PIPELINING", "PIPECONNECT"):
            if word in listener.capabilities.hide:
                yield where, f"needs {show(word)}, which is hidden"


def _hidden_chunking(
    listeners: Mapping[str, ListenerSettings], backends: Mapping[str, BackendSettings]
) -> Iterator[KeyProblem]:
    """Yield each backend that adds CHUNKING, if all listeners that use it hide CHUNKING."""
    for name, backend in backends.items():
        if backend is BAD or backend.chunking != "add":
            continue
        used = [each for each in listeners.values() if each is BAD or each.backend in (name, "")]
        if used and not any(map(_may_offer_chunking, used)):
            what = 'cannot be "add": each listener that uses it hides "CHUNKING"'
            yield ("backends", name, "chunking"), what


def _may_offer_chunking(listener: ListenerSettings) -> bool:
    if listener is BAD or listener.capabilities is BAD or listener.capabilities.hide is BAD:
        return True
    return "CHUNKING" not in listener.capabilities.hide


def _watching(settings: Settings, need_trace_directory: bool) -> Iterator[KeyProblem]:
    if settings.trace is not BAD and need_trace_directory:
        yield from _trace_nowhere(settings.trace)
    if settings.otel is not BAD:
        yield from _without_collector(settings.otel)
    if settings.admin is not BAD:
        yield from _open_admin(settings.admin)


def _trace_nowhere(trace: TraceSettings) -> Iterator[KeyProblem]:
    """Report `[trace]` without a directory: nothing would be recorded."""
    wrong = BAD in astuple(trace) or (trace.networks and BAD in trace.networks)
    if not wrong and trace.directory == "" and trace != TraceSettings() and trace.when != "off":
        yield ("trace", "directory"), 'is missing; write, for example, "/var/log/smtpproxy"'


def _without_collector(otel: OtelSettings) -> Iterator[KeyProblem]:
    """Report `[otel]` without an endpoint, or without the packages that it needs."""
    if BAD in astuple(otel):
        return
    if otel.endpoint == "" and otel != OtelSettings():
        yield ("otel", "endpoint"), 'is missing; write, for example, "http://127.0.0.1:4318"'
    if otel.endpoint and not all(map(_is_installed, _OTEL_MODULES)):
        what = "needs packages that are not installed: pip install 'smtpproxy[otel]'"
        yield ("otel", "endpoint"), what


def _half_a_cluster(cluster: ClusterSettings) -> Iterator[KeyProblem]:
    """Report `[cluster]` without what it needs: a URL, a number of replicas, and a package."""
    if BAD in astuple(cluster):
        return
    if cluster.url == "":
        if cluster != ClusterSettings():
            yield ("cluster", "url"), 'is missing; write, for example, "redis://10.0.0.9:6379"'
        return
    if cluster.replicas == 0:
        what = "is missing or 0: write how many replicas are expected, such as 2"
        yield ("cluster", "replicas"), what
    if not _is_installed(_CLUSTER_MODULE):
        what = "needs a package that is not installed: pip install 'smtpproxy[cluster]'"
        yield ("cluster", "url"), what


def _is_installed(module: str) -> bool:
    """Return whether a module can be imported; only the packages that it is in are imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _open_admin(admin: AdminSettings) -> Iterator[KeyProblem]:
    """Report an admin address that other machines can reach without a token."""
    if BAD in astuple(admin) or admin.address == Address():
        return
    if not admin.address.is_loopback and not (admin.token or admin.token_file):
        what = "is missing: it is needed for an address that other machines can reach"
        yield ("admin", "token"), what


def _small_queue(limits: LimitSettings) -> Iterator[KeyProblem]:
    """Report a queue that is smaller than a line: the line would never become a command."""
    sizes = (limits.queue_bytes, limits.command_line, limits.auth_line)
    if BAD not in sizes and limits.queue_bytes < max(sizes):
        yield (
            ("limits", "queue_bytes"),
            f"must be at least command_line and auth_line, {max(sizes)} bytes",
        )
