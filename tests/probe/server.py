"""A scripted SMTP server for behaviour that real servers do not show, one thread per connection."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self

from smtpproxy.config.address import Address
from smtpproxy.probe import probe_run
from smtpproxy.probe.connector import ProbeOptions
from smtpproxy.probe.findings import Findings

CLOSE = b"CLOSE"
"""In place of a reply: close the connection."""
TIMEOUT_S = 5.0
_GIVE_UP_S = 20.0

Script = Callable[["Session"], None]


class Session:
    """One connection of the server, and the lines that it received."""

    def __init__(self, connection: socket.socket) -> None:
        self.heard: list[bytes] = []
        self.verb = b""
        self.was_reset = False
        self.connection = connection
        self._unread = b""

    def read(self) -> bytes:
        """Return the next bytes; empty at the end of the connection."""
        return self.connection.recv(65536)

    def line(self) -> bytes:
        """Return the next line; empty at the end of the connection."""
        while b"\n" not in self._unread:
            octets = self.read()
            if not octets:
                return b""
            self._unread += octets
        line, newline, self._unread = self._unread.partition(b"\n")
        self.heard.append(line + newline)
        self.verb = line[:4].upper()
        return self.heard[-1]

    def say(self, octets: bytes) -> None:
        """Send octets."""
        self.connection.sendall(octets)

    def secure(self, context: ssl.SSLContext, *, leaky: bool = False) -> None:
        """Make the TLS handshake; if `leaky`, keep plaintext that was received before it."""
        self._unread = self._unread if leaky else b""
        self.connection = context.wrap_socket(self.connection, server_side=True)


class Server:
    """Greets and answers each verb from `replies`, else with 250, or runs a `script`.

    Args:
        replies: The whole reply, or `CLOSE`, by the first four letters of the verb.
        greeting: The greeting.
        capabilities: The capabilities in the EHLO reply.
        context: The TLS context for STARTTLS, or for implicit TLS.
        implicit: Whether TLS is implicit.
        injects: Plaintext to send after the 220 reply to STARTTLS.
        leaky: Whether to execute inside TLS what was sent in plaintext after STARTTLS.
        script: Handles each connection in place of all that.
        path: The path of a Unix socket; empty for TCP.
    """

    def __init__(
        self,
        replies: Mapping[bytes, bytes] = MappingProxyType({}),
        *,
        greeting: bytes = b"220 mx\r\n",
        capabilities: tuple[bytes, ...] = (),
        context: ssl.SSLContext | None = None,
        implicit: bool = False,
        injects: bytes = b"",
        leaky: bool = False,
        script: Script | None = None,
        path: str = "",
    ) -> None:
        starttls = (b"STARTTLS",) if context and not implicit else ()
        lines = [b"mx", *capabilities, *starttls]
        hello = b"".join(b"250-%s\r\n" % line for line in lines[:-1]) + b"250 %s\r\n" % lines[-1]
        self._replies = {
            b"EHLO": hello,
            b"DATA": b"503 no recipients\r\n",
            b"QUIT": b"221 bye\r\n",
            **replies,
        }
        self._greeting = greeting
        self._context = context
        self._implicit = implicit
        self._injects = injects
        self._leaky = leaky
        self._script = script or self._converse
        self._threads: list[threading.Thread] = []
        self.sessions: list[Session] = []
        self._socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._socket.bind(path or ("127.0.0.1", 0))
        name = self._socket.getsockname()
        self.address = Address(path=path) if path else Address(host=name[0], port=name[1])

    @property
    def heard(self) -> list[bytes]:
        """The lines of all connections."""
        return [line for session in self.sessions for line in session.heard]

    def __enter__(self) -> Self:
        self._socket.listen()
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for session in self.sessions:
            with contextlib.suppress(OSError):
                session.connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_GIVE_UP_S)
            assert not thread.is_alive()
        self._socket.close()

    def _begin(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(_GIVE_UP_S)
                session = Session(connection)
                self.sessions.append(session)
                self._begin(self._serve, session)

    def _serve(self, session: Session) -> None:
        try:
            if self._implicit:
                assert self._context is not None
                session.secure(self._context)
            self._script(session)
        except ConnectionResetError:
            session.was_reset = True
        except OSError:
            pass  # the probe closed the connection, or refused this TLS
        finally:
            session.connection.close()

    def _converse(self, session: Session) -> None:
        session.say(self._greeting)
        while line := session.line():
            if line == b"STARTTLS\r\n" and self._context and session.verb not in self._replies:
                session.say(b"220 go\r\n" + self._injects)
                if self._injects:
                    session.read()  # a client must not start TLS after that
                    return
                session.secure(self._context, leaky=self._leaky)
                continue
            reply = self._replies.get(session.verb, b"250 fine\r\n")
            if reply == CLOSE:
                return
            session.say(reply)
            if session.verb == b"QUIT":
                return


def examined(
    server: Server,
    *,
    timeout_s: float = TIMEOUT_S,
    name: str = "probe.example",
    sender: str = "",
    relay_to: str = "",
    implicit_tls: bool = False,
) -> Findings:
    """Probe a server, and check that the end of data was never sent."""
    options = ProbeOptions(server.address, timeout_s, name, sender, relay_to, implicit_tls)
    found = probe_run.examine(options, lambda _: None)
    assert b".\r\n" not in server.heard
    return found
