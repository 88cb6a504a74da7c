"""The health check of a server: connects as for a client, and waits for the greeting.

It then sends EHLO and QUIT, so that the MTA's log shows a short but correct session.
"""

import asyncio
from typing import cast

from smtpproxy.core.capabilities import capability_lines
from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.tls.error_text import OUR_OWN, error_text

LONGEST_S = 30.0
"""The time limit of a check, unless the next one is due earlier."""


async def check(server: Server, hostname: str, limit_s: float = LONGEST_S) -> str:
    """Check a server, from the proxy's own address, and record its offer if none is known.

    Args:
        server: The server.
        hostname: The name in EHLO.
        limit_s: The time limit of the check.

    Returns:
        Why the server cannot be used, in words; empty if it can.

    Raises:
        OSError: The check failed because of this machine, such as a lack of descriptors.
    """
    dialogue = _CheckConnection()
    try:
        async with asyncio.timeout(limit_s):
            await server.connect(lambda: dialogue, None)
            return await _converse(server, dialogue, hostname)
    except TimeoutError:
        return "check time limit"
    except OSError as error:
        if error.errno in OUR_OWN:
            raise
        return error_text(error)
    finally:
        dialogue.close()


async def _converse(server: Server, dialogue: "_CheckConnection", hostname: str) -> str:
    code = await dialogue.reply()
    if not 200 <= code < 300:
        return _why("greeted", code)
    dialogue.say(f"EHLO {hostname}")
    code = await dialogue.reply()
    offer = capability_lines(dialogue.last)
    if code in (500, 502):
        dialogue.say(f"HELO {hostname}")  # RFC 5321 section 3.2
        code = await dialogue.reply()
        offer = b""
    if not 200 <= code < 300:
        return _why("answered EHLO", code)
    server.add_offer(offer)
    dialogue.say("QUIT")
    await dialogue.reply()
    return ""


def _why(what: str, code: int) -> str:
    return f"{what} with {code}" if code else f"closed, or {what} with an invalid reply"


class _CheckConnection(asyncio.Protocol):
    """The connection of a check."""

    def __init__(self) -> None:
        self._reader = ReplyReader()
        self._replies: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.last = b""
        """The last reply."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.receive(data)
        try:
            while (reply := self._reader.next_reply()) is not None:
                self._replies.put_nowait(reply)
        except BackendViolation:
            self._replies.put_nowait((0, b""))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._replies.put_nowait((0, b""))

    async def reply(self) -> int:
        """Wait for the next reply; return its code, or 0 after the end or an invalid reply."""
        code, self.last = await self._replies.get()
        return code

    def say(self, line: str) -> None:
        assert self._transport is not None
        self._transport.write(line.encode("ascii", "replace") + b"\r\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
