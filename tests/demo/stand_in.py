"""A minimal stand-in for the proxy, with selectable faults, to test the demo."""

import asyncio
import contextlib
from typing import Any

CRLF = b"\r\n"
GROUPED = (b"MAIL", b"RCPT", b"RSET")


class StandIn:
    """A proxy with the interface of `App`.

    Its fault is one of: "swapped", two replies of a group are exchanged; "lost", the last reply
    is missing; "not offered", PIPELINING is missing; "unguarded", DATA without recipients is
    forwarded; "chatty", a NOOP is added after each MAIL, RCPT and RSET; "altered", the content is
    changed.
    """

    fault = ""

    def __init__(self, settings: Any) -> None:
        (backend,) = settings.backends.values()
        self._backend = str(backend.servers[0])
        self._sessions: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> list[str]:
        host, port = self._server.sockets[0].getsockname()[:2]
        return [f"{host}:{port}"]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        host, _, port = self._backend.rpartition(":")
        mta = await asyncio.open_connection(host, int(port))
        session = _Session(self.fault, (reader, writer), mta)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await session.relay()
        for peer in (mta[1], writer):
            peer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await peer.wait_closed()
        self._sessions.discard(task)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Session:
    def __init__(self, fault: str, client: Streams, mta: Streams) -> None:
        self._fault = fault
        self._reader, self._writer = client
        self._mta_reader, self._mta_writer = mta
        self._asked = self._refused = 0

    async def relay(self) -> None:
        held = [await self._reply()]
        content = False
        verb = b""
        while verb != b"QUIT":
            if not self._reader._buffer:  # type: ignore[attr-defined]  # the flush rule needs it
                self._writer.write(b"".join(self._faulty(held)))
                held = []
            line = await self._reader.readuntil(b"\r\n.\r\n" if content else CRLF)
            verb = b"." if content else line[:4].upper()
            held.append(await self._exchange(verb, line))
            content = verb == b"DATA" and held[-1].startswith(b"354")
        self._writer.write(b"".join(held))

    async def _exchange(self, verb: bytes, line: bytes) -> bytes:
        """Return the reply to one command, from the MTA or the proxy itself."""
        if verb == b"DATA" and self._asked == self._refused > 0 and self._fault != "unguarded":
            return b"554 5.5.1 no valid recipients\r\n"
        if verb == b"." and self._fault == "altered":
            line = b"X-Proxy: was here\r\n" + line
        chatty = self._fault == "chatty" and verb in GROUPED
        self._mta_writer.write(line + b"NOOP\r\n" * chatty)
        reply = await self._reply()
        if chatty:
            await self._reply()
        if verb == b"MAIL":
            self._asked = self._refused = 0
        if verb == b"RCPT":
            self._asked += 1
            self._refused += not reply.startswith(b"2")
        if verb == b"EHLO" and self._fault != "not offered":
            reply = reply.replace(b"250 ", b"250-") + b"250-PIPELINING\r\n250 PIPECONNECT\r\n"
        return reply

    async def _reply(self) -> bytes:
        reply = b""
        while True:
            line = await self._mta_reader.readuntil(CRLF)
            reply += line
            if line[3:4] != b"-":
                return reply

    def _faulty(self, held: list[bytes]) -> list[bytes]:
        if self._fault == "swapped" and len(held) > 3:
            held[1], held[2] = held[2], held[1]
        if self._fault == "lost" and len(held) > 3:
            del held[-1]
        return held
