"""The connector: every way to open a connection to the server that is examined.

All connections go to one and the same IP address, which is looked up once.
"""

import re
import socket
import ssl
import warnings
from dataclasses import dataclass
from time import monotonic

from smtpproxy.config.address import Address
from smtpproxy.probe.smtp_connection import CheckFailed, ProbeReply, Refused, SmtpConnection
from smtpproxy.tls.contexts import VERSIONS

IMPLICIT_TLS_PORT = 465
"""Where TLS comes first (RFC 8314)."""
LEAST_PATIENCE_S = 1.0
"""Silence that is shorter tells nothing."""
_WHOLE = 20

_Name = str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
_Place = tuple[socket.AddressFamily, _Name]


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What the user wants to have examined, and how.

    timeout_s: for each reply; the whole takes no more than twenty times as long.
    name: in EHLO and HELO; empty: this machine's, or the address literal of the connection.
    sender: in every MAIL; empty: the null sender.  relay_to: of the relay test; empty: none.
    implicit_tls: begin with TLS.
    """

    address: Address
    timeout_s: float = 30.0
    name: str = ""
    sender: str = ""
    relay_to: str = ""
    implicit_tls: bool = False


class Connector:
    """Opens connections, and keeps in mind what they taught of the server.

    hello: the verb that it knows.  name: in it.
    is_implicit: it expects TLS first.  through_tls: it does nothing without STARTTLS.
    seconds: verb -> of each reply to a command that travelled alone.  connections: so many so far.
    Raises OSError where the server can't be reached any more, and Untold.
    """

    def __init__(self, options: ProbeOptions) -> None:
        self.address = options.address
        self.timeout_s = options.timeout_s
        self.until = monotonic() + _WHOLE * options.timeout_s
        self.hello = b"EHLO"
        self.name = options.name
        self.mail = b"MAIL FROM:<" + options.sender.encode() + b">"
        self.is_implicit = options.implicit_tls or options.address.port == IMPLICIT_TLS_PORT
        self.through_tls = False
        self.seconds: dict[str, list[float]] = {}
        self.connections = 0
        self._places: list[_Place] = []

    @property
    def ip(self) -> str:
        """The IP address that the server is reached at; empty for a Unix socket."""
        return str(self._places[0][1][0]) if self._places and not self.address.is_unix else ""

    @property
    def patience_s(self) -> float:
        """How long silence must last to be one."""
        slowest = max((each for verb in self.seconds.values() for each in verb), default=0.0)
        return min(self.timeout_s, max(LEAST_PATIENCE_S, 5 * slowest))

    def find(self) -> None:
        """Look the server up.  Raises OSError."""
        self._places = _places(self.address)

    def connect(self) -> SmtpConnection:
        """Return a connection that has said nothing yet, inside TLS if that comes first."""
        if self.is_implicit:
            return self.secured(unverified(), None)
        return self._open()

    def greeted(self) -> SmtpConnection:
        """Return a connection on which EHLO, or HELO, has been accepted just now."""
        if self.through_tls:
            return self.introduced(self.secured(unverified(), None))
        return self.introduced(self.connect(), greeting=True)

    def secured(self, context: ssl.SSLContext, server_name: str | None) -> SmtpConnection:
        """Return a connection that is inside TLS since just now; greeted before by STARTTLS only.

        Raises HandshakeFailed.
        """
        connection = self._open()
        try:
            if not self.is_implicit:
                self.introduced(connection, greeting=True)
                reply = connection.ask(b"STARTTLS")
                if reply.code != 220:
                    raise Refused("STARTTLS", reply)
                if connection.unread:
                    raise CheckFailed("octets came in plaintext behind the 220")
            connection.secure(context, server_name)
        except CheckFailed:
            connection.abort()
            raise
        return connection

    def introduced(self, connection: SmtpConnection, *, greeting: bool = False) -> SmtpConnection:
        """Say EHLO, after the greeting if that is still to come; return the same connection."""
        try:
            if greeting:
                _expect("the connection", self.greeting(connection))
            _expect("EHLO", self.say_hello(connection))
        except CheckFailed:
            connection.abort()
            raise
        return connection

    def greeting(self, connection: SmtpConnection) -> ProbeReply:
        """Wait for the greeting."""
        reply = connection.reply()
        self._note("greeting", reply)
        return reply

    def say_hello(self, connection: SmtpConnection) -> ProbeReply:
        """Say EHLO, or HELO where it knows nothing else."""
        return connection.ask(self.hello + b" " + self.name.encode())

    def _open(self) -> SmtpConnection:
        connection = SmtpConnection(self._reach_any(), self.timeout_s, self.until, self._note)
        self.connections += 1
        self.name = self.name or _own_name(connection.own_ip or "127.0.0.1")
        return connection

    def _note(self, verb: str, reply: ProbeReply) -> None:
        self.seconds.setdefault(verb, []).append(reply.seconds)

    def _reach_any(self) -> socket.socket:
        """Connect; of several places the first that could be reached is the only one then."""
        failure = OSError("it has no address")
        for place in self._places:
            try:
                opened = _reach(*place, min(self.timeout_s, self.until - monotonic()))
            except OSError as error:
                failure = error
                continue
            self._places = [place]
            return opened
        raise failure


def unverified(version: str = "") -> ssl.SSLContext:
    """Return a context that takes any certificate, old ciphers, and any version or just this one.

    Raises ValueError if this machine's OpenSSL does not have that version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL allows 1.0 and 1.1 at no higher level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = VERSIONS[version or "1.0"]
        context.maximum_version = VERSIONS[version or "1.3"]
    return context


def _places(address: Address) -> list[_Place]:
    if address.is_unix:
        return [(socket.AF_UNIX, address.path)]
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [(family, name) for family, _, _, _, name in found]


def _reach(family: socket.AddressFamily, name: _Name, timeout_s: float) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(max(timeout_s, 0.001))
        opened.connect(name)
        if family != socket.AF_UNIX:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        opened.close()
        raise
    return opened


def _own_name(ip: str) -> str:
    """Return this machine's name if it is a whole one, else an address literal (RFC 5321, 4.1.3).

    No name is looked up: that may take long, and tell little.
    """
    name = socket.gethostname()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name, re.ASCII):
        return name
    ip = ip.partition("%")[0]
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"


def _expect(what: str, reply: ProbeReply) -> None:
    if not reply.is_accepting:
        raise Refused(what, reply)
