"""Opens connections to the server under test.

The host name is looked up once, and all connections go to the same IP address.
"""

import re
import socket
import ssl
from dataclasses import dataclass
from time import monotonic

from smtpproxy.config.address import Address
from smtpproxy.probe.smtp_connection import CheckFailed, ProbeReply, Refused, SmtpConnection
from smtpproxy.tls.contexts import allow_insecure_renegotiation, set_versions

IMPLICIT_TLS_PORT = 465
"""The submission port with implicit TLS (RFC 8314)."""
LEAST_PATIENCE_S = 1.0
"""The shortest time without a reply that counts as no reply."""
_WHOLE = 20
"""The time limit of a whole run, in multiples of the timeout of one reply."""

_Name = str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
_SocketAddress = tuple[socket.AddressFamily, _Name]


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """The server to test, and the options of the command line."""

    address: Address
    timeout_s: float = 30.0
    """The time limit of each reply; the whole run may take 20 times as long."""
    name: str = ""
    """The name in EHLO and HELO; empty for this machine's name or its address literal."""
    sender: str = ""
    """The sender in every MAIL; empty for the null sender."""
    relay_to: str = ""
    """The recipient of the relay test; empty for no test."""
    implicit_tls: bool = False
    """Whether to start with a TLS handshake."""


class Connector:
    """Opens connections to one server and remembers what it needs for the next one.

    The methods that open a connection raise `OSError` if the server cannot be reached any
    more, and `CheckFailed` if it does not reply as the check requires.
    """

    def __init__(self, options: ProbeOptions) -> None:
        self.address = options.address
        self.timeout_s = options.timeout_s
        self.until = monotonic() + _WHOLE * options.timeout_s
        """When the whole run must end, on the monotonic clock."""
        self.hello = b"EHLO"
        """The greeting verb that the server knows: EHLO, or HELO."""
        self.name = options.name
        """The name in EHLO and HELO."""
        self.mail = b"MAIL FROM:<" + options.sender.encode() + b">"
        self.is_implicit = options.implicit_tls or options.address.port == IMPLICIT_TLS_PORT
        """Whether the server expects implicit TLS."""
        self.through_tls = False
        """Whether the server takes no mail before STARTTLS."""
        self.seconds: dict[str, list[float]] = {}
        """The reply times by verb, of commands that were sent alone."""
        self.connections = 0
        """How many connections have been opened."""
        self._socket_addresses: list[_SocketAddress] = []

    def use_implicit_tls(self) -> None:
        """Make all connections inside TLS from now on."""
        self.is_implicit = True

    def use_helo(self) -> None:
        """Send HELO from now on, since the server does not know EHLO."""
        self.hello = b"HELO"

    def use_starttls(self) -> None:
        """Begin each session with STARTTLS, since the server takes no mail before it."""
        self.through_tls = True

    @property
    def ip(self) -> str:
        """The IP address of the server; empty for a Unix socket."""
        return (
            str(self._socket_addresses[0][1][0])
            if self._socket_addresses and not self.address.is_unix
            else ""
        )

    @property
    def patience_s(self) -> float:
        """How long to wait before concluding that no reply comes, in seconds."""
        slowest = max((each for verb in self.seconds.values() for each in verb), default=0.0)
        return min(self.timeout_s, max(LEAST_PATIENCE_S, 5 * slowest))

    def find(self) -> None:
        """Look up the server's addresses.

        Raises:
            OSError: The name cannot be resolved.
        """
        self._socket_addresses = _socket_addresses(self.address)

    def connect(self) -> SmtpConnection:
        """Return a new connection, with nothing sent yet, inside TLS if that is implicit."""
        if self.is_implicit:
            return self.secured(unverified(), None)
        return self._open()

    def greeted(self) -> SmtpConnection:
        """Return a new connection on which EHLO or HELO has been accepted."""
        if self.through_tls:
            return self.introduced(self.secured(unverified(), None))
        return self.introduced(self.connect(), greeting=True)

    def secured(self, context: ssl.SSLContext, server_name: str | None) -> SmtpConnection:
        """Return a new connection after its TLS handshake; EHLO inside TLS is still to be sent.

        Args:
            context: The TLS context of the handshake.
            server_name: The name for SNI and verification; None for neither.

        Raises:
            HandshakeFailed: The TLS handshake failed.
            Refused: The server refused a command up to STARTTLS.
            CheckFailed: The server sent more after its reply to STARTTLS, or did not reply.
        """
        connection = self._open()
        try:
            if not self.is_implicit:
                self.introduced(connection, greeting=True)
                reply = connection.ask(b"STARTTLS")
                if reply.code != 220:
                    raise Refused("STARTTLS", reply)
                if connection.unread:
                    raise CheckFailed("it sent plaintext after its 220 reply to STARTTLS")
            connection.secure(context, server_name)
        except CheckFailed:
            connection.abort()
            raise
        return connection

    def introduced(self, connection: SmtpConnection, *, greeting: bool = False) -> SmtpConnection:
        """Send EHLO on a connection and return it.

        Args:
            connection: An open connection, which is aborted if the server refuses.
            greeting: Whether to wait for the server's greeting first.

        Raises:
            CheckFailed: The greeting or the reply to EHLO is not a 2xx, or does not come.
        """
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
        """Send EHLO, or HELO if the server does not know EHLO."""
        return connection.ask(self.hello + b" " + self.name.encode())

    def _open(self) -> SmtpConnection:
        connection = SmtpConnection(self._reach_any(), self.timeout_s, self.until, self._note)
        self.connections += 1
        self.name = self.name or _own_name(connection.own_ip or "127.0.0.1")
        return connection

    def _note(self, verb: str, reply: ProbeReply) -> None:
        self.seconds.setdefault(verb, []).append(reply.seconds)

    def _reach_any(self) -> socket.socket:
        """Connect to the first address that can be reached, and keep to it from then on."""
        failure = OSError("it has no address")
        for socket_address in self._socket_addresses:
            try:
                opened = _reach(*socket_address, min(self.timeout_s, self.until - monotonic()))
            except OSError as error:
                failure = error
                continue
            self._socket_addresses = [socket_address]
            return opened
        raise failure


def unverified(version: str = "") -> ssl.SSLContext:
    """Return a TLS context that accepts any certificate and old ciphers.

    Args:
        version: The only version to offer, such as "1.2"; empty for all versions.

    Raises:
        ValueError: This machine's OpenSSL does not have that version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    allow_insecure_renegotiation(context)
    context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL allows 1.0 and 1.1 at no higher level
    set_versions(context, version or "1.0", version or "1.3")
    return context


def _socket_addresses(address: Address) -> list[_SocketAddress]:
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
    """Return this machine's name if fully qualified, else an address literal.

    RFC 5321 section 4.1.3.  The name is not looked up in DNS, which may be slow.
    """
    name = socket.gethostname()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name, re.ASCII):
        return name
    ip = ip.partition("%")[0]
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"


def _expect(what: str, reply: ProbeReply) -> None:
    if not reply.is_accepting:
        raise Refused(what, reply)
