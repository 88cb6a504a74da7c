"""The service behind a listener: what all of its sessions share."""

from dataclasses import dataclass

from smtpproxy.core.observer import Observer
from smtpproxy.core.policy import Rules
from smtpproxy.net.admission import Admission
from smtpproxy.net.backend.connection_slots import Places
from smtpproxy.net.backend.server_pool import Servers
from smtpproxy.net.listener_security import Security
from smtpproxy.net.rate_limit import Pacing
from smtpproxy.net.timeouts import Sweeper
from smtpproxy.net.write_batching import Outbox


@dataclass(frozen=True, slots=True)
class Service:
    """Made once for each listener.

    name: the listener's address, for observers.
    servers: those of its backend.  places: at the backend; None if there are as many as wanted.
    admission: who decides whether a client is served; None lets everybody in.
    pacing: how fast commands may come; None if as fast as they do.
    security: None where there is no TLS, and nobody is introduced or believed.
    """

    name: str
    rules: Rules
    servers: Servers
    sweeper: Sweeper
    outbox: Outbox
    observer: Observer
    places: Places | None = None
    admission: Admission | None = None
    pacing: Pacing | None = None
    security: Security | None = None
