"""A scripted server, for all that a real one would never do."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Self

from smtpproxy.address import Address
from smtpproxy.probe import examination
from smtpproxy.probe.access import Wanted
from smtpproxy.probe.findings import Findings

CLOSE = b"CLOSE"
"""In place of a reply: the connection is closed."""
TIMEOUT_S = 5.0

Script = Callable[["Session"], Awaitable[None]]


class Session:
    """One connection: what it heard, line by line, and the means to answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard: list[bytes] = []
        self.verb = b""
        self.was_reset = False

    async def line(self) -> bytes:
        """Return the next line, or nothing at the end."""
        line = await self.reader.readline()
        if line:
            self.heard.append(line)
        self.verb = line[:4].upper()
        return line

    def say(self, octets: bytes) -> None:
        """Send octets."""
        self.writer.write(octets)


class Server:
    """Greets, and answers each verb by `replies`, else with 250; a `script` does all by itself.

    capabilities: of the reply to EHLO.  context: STARTTLS is done with it; if `implicit`, TLS comes
    first.  injects: octets in plaintext behind the 220 to STARTTLS.
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
        self._script = script or self._converse
        self._path = path
        self.sessions: list[Session] = []

    @property
    def address(self) -> Address:
        """Where it listens."""
        if self._path:
            return Address(path=self._path)
        host, port = self._server.sockets[0].getsockname()
        return Address(host=host, port=port)

    @property
    def heard(self) -> list[bytes]:
        """Every line that any connection brought."""
        return [line for session in self.sessions for line in session.heard]

    async def __aenter__(self) -> Self:
        if self._path:
            self._server: asyncio.Server = await asyncio.start_unix_server(self._serve, self._path)
            return self
        context = self._context if self._implicit else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for session in self.sessions:
            session.writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(reader, writer)
        self.sessions.append(session)
        plain = writer.transport
        try:
            await self._script(session)
        except ConnectionResetError:
            session.was_reset = True
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.transport.abort()
            plain.abort()

    async def _converse(self, session: Session) -> None:
        session.say(self._greeting)
        while line := await session.line():
            reply = self._replies.get(session.verb, b"250 fine\r\n")
            if line == b"STARTTLS\r\n" and self._context and session.verb not in self._replies:
                await self._secure(session)
                continue
            if reply == CLOSE:
                with contextlib.suppress(OSError):
                    await session.writer.drain()
                session.writer.close()
                return
            session.say(reply)
            if session.verb == b"QUIT":
                await session.writer.drain()
                session.writer.close()
                return

    async def _secure(self, session: Session) -> None:
        assert self._context is not None
        session.say(b"220 go\r\n" + self._injects)
        await session.writer.start_tls(self._context)


async def examined(
    server: Server,
    *,
    timeout_s: float = TIMEOUT_S,
    name: str = "probe.example",
    sender: str = "",
    relay_to: str = "",
    implicit_tls: bool = False,
) -> Findings:
    """Examine a server; whatever it is, no message may have been ended."""
    wanted = Wanted(server.address, timeout_s, name, sender, relay_to, implicit_tls)
    found = await asyncio.to_thread(examination.examine, wanted, lambda _: None)
    assert b".\r\n" not in server.heard
    return found
