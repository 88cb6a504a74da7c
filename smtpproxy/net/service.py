"""The service behind a listener: what all of its sessions share."""

from dataclasses import dataclass

from smtpproxy.core.observer import Observer
from smtpproxy.core.rules import Rules
from smtpproxy.net.outbox import Outbox
from smtpproxy.net.servers import Server
from smtpproxy.net.sweeper import Sweeper


@dataclass(frozen=True, slots=True)
class Service:
    """Made once for each listener.

    name: the listener's address, for observers.  servers: of its backend, in order of preference.
    """

    name: str
    rules: Rules
    servers: tuple[Server, ...]
    sweeper: Sweeper
    outbox: Outbox
    observer: Observer
