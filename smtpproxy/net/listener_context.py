"""The context of a listener: what its sessions share."""

from dataclasses import dataclass

from smtpproxy.core.observer import ServiceObserver
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.net.admission import Admission
from smtpproxy.net.backend.connection_slots import ConnectionSlots
from smtpproxy.net.backend.server_pool import ServerPool
from smtpproxy.net.fault_injection import FaultInjection
from smtpproxy.net.listener_security import ListenerSecurity
from smtpproxy.net.timeouts import SessionTimeouts
from smtpproxy.net.write_batching import WriteBatcher


@dataclass(frozen=True, slots=True)
class ListenerContext:
    """What the sessions of a listener share."""

    name: str
    """The name of the listener in the settings."""
    backend: str
    """The name of its backend in the settings."""
    policy: SessionPolicy
    servers: ServerPool
    """The servers of the backend."""
    timeouts: SessionTimeouts
    write_batcher: WriteBatcher
    observer: ServiceObserver
    connection_slots: ConnectionSlots | None = None
    """The connection slots of the backend; None if it has no limit."""
    admission: Admission | None = None
    """The admission of the worker; None to admit all clients."""
    commands_per_second: float = 0
    """The rate limit of a session's commands; 0 for none."""
    security: ListenerSecurity | None = None
    """The listener's TLS and trust rules; None if there are none."""
    faults: FaultInjection | None = None
    """The faults to inject; None if there are none."""
