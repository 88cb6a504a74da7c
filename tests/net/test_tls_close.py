"""A client that sends close_notify before it has all replies loses none."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable

import pytest

from tests.net.real_sockets import GROUP, IMPLICIT, Client, Stage, client


class Inside:
    """A TLS client that sends each record, and the end of the connection, on request."""

    def __init__(self, context: ssl.SSLContext, one: Client) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="mx.example")
        self._one = one

    def send(self) -> None:
        if self._outgoing.pending:
            self._one.writer.write(self._outgoing.read())

    async def until_done(self, what: Callable[[], object]) -> None:
        """Run a step that may need octets of the other side."""
        while True:
            try:
                what()
            except ssl.SSLWantReadError:
                self.send()
                self._incoming.write(await self._one.reader.read(65536))
            else:
                self.send()
                return

    async def hear(self, end: bytes) -> None:
        """Read up to these octets."""
        octets = b""

        def read() -> None:
            nonlocal octets
            while not octets.endswith(end):
                octets += self.tls.read()

        await self.until_done(read)


@pytest.mark.parametrize("apart", [False, True])
async def test_a_close_notify_after_quit_loses_no_reply(stage: Stage, apart: bool) -> None:
    """Exim sends it there, and half-closes the connection, too."""

    async def maybe_send() -> None:
        if apart:
            inside.send()
            for _ in range(5):  # the proxy is in this loop, and reads
                await asyncio.sleep(0)

    async with client(await stage.start(IMPLICIT)) as one:
        inside = Inside(stage.client_context, one)
        await inside.until_done(inside.tls.do_handshake)
        inside.tls.write(b"".join(command + b"\r\n" for command in GROUP))
        await inside.hear(b"354 go\r\n")
        inside.tls.write(b"hello\r\n.\r\nQUIT\r\n")
        await maybe_send()
        with contextlib.suppress(ssl.SSLWantReadError):
            inside.tls.unwrap()
        await maybe_send()
        inside.send()
        one.writer.write_eof()
        await inside.hear(b"250 queued\r\n221 QUIT\r\n")
        with pytest.raises(ssl.SSLZeroReturnError):  # the proxy sends close_notify, too
            await inside.hear(b"more")
