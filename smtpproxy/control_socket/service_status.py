"""The status of the service: what `smtpproxy status` asks for, as the service answers it."""

from typing import Literal

from msgspec import Struct, field

PATH = "/status"
"""The path of the request."""

State = Literal["starting", "serving", "no worker", "draining", "handed over", "silent", "unknown"]
"""`handed over`: only its last sessions go on, another version serves.  `silent`: a replica that
the store has not heard for some seconds.  `unknown`: a replica of another version of smtpproxy,
whose status this one cannot read."""


class BackendStatus(Struct):
    """The state of a backend, as an instance sees it."""

    name: str
    connections: int = 0
    """Connection slots in use; 0 without `max_connections`."""
    max_connections: int = 0
    """The setting; 0 for no limit."""
    waiting: int = 0
    """Clients that wait for a connection."""
    servers: int = 0
    """How many servers it has."""
    servers_down: list[str] = field(default_factory=list)
    """The addresses of those that are down."""

    def add(self, other: "BackendStatus") -> None:
        """Add the connections of another instance, whose limit may be another one."""
        self.connections += other.connections
        self.waiting += other.waiting
        self.max_connections = max(self.max_connections, other.max_connections)


class InstanceStatus(Struct):
    """The state of one instance."""

    instance: str
    """Its name."""
    version: str = ""
    """Of smtpproxy."""
    state: State = "unknown"
    uptime_s: float = 0.0
    """The seconds since its start, or since its last upgrade."""
    workers: int = 0
    """Worker processes."""
    sessions: int = 0
    """Open sessions."""
    backends: list[BackendStatus] = field(default_factory=list)
    store: Literal["", "up", "away"] = ""
    """Whether the store of the cluster answers it; empty without a cluster."""
    age_s: float = 0.0
    """The seconds since it reported this to the store; 0 for the instance that was asked."""
    replicas: int = 0
    """The setting of its cluster; 0 without one."""
    lease_s: float = 0.0
    """The setting of its cluster; 0 without one."""


class ServiceStatus(Struct):
    """The state of the instance that was asked, and of the others in its cluster."""

    instances: list[InstanceStatus]
    """By name."""
    cluster: str = ""
    """The name of the cluster; empty without one."""
    replicas: int = 0
    """How many instances are expected in the cluster."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, a line each; none if all is well."""
