"""The context of a listener: what all of its sessions share."""

from dataclasses import dataclass

from smtpproxy.core.observer import ServiceObserver
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.net.admission import Admission
from smtpproxy.net.backend.connection_slots import ConnectionSlots
from smtpproxy.net.backend.server_pool import ServerPool
from smtpproxy.net.listener_security import ListenerSecurity
from smtpproxy.net.timeouts import SessionTimeouts
from smtpproxy.net.write_batching import WriteBatcher


@dataclass(frozen=True, slots=True)
class ListenerContext:
    """Made once for each listener.

    name, backend: the names in the settings, for observers.
    servers: those of its backend.  connection_slots: at the backend; None if there are as many as
    wanted.
    admission: who decides whether a client is served; None lets everybody in.
    commands_per_second: how fast the commands of a session may come; 0 if as fast as they do.
    security: None where there is no TLS, and nobody is introduced or believed.
    """

    name: str
    backend: str
    policy: SessionPolicy
    servers: ServerPool
    timeouts: SessionTimeouts
    write_batcher: WriteBatcher
    observer: ServiceObserver
    connection_slots: ConnectionSlots | None = None
    admission: Admission | None = None
    commands_per_second: float = 0
    security: ListenerSecurity | None = None
