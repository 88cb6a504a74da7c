"""Replays the client's side of a session to any server, and compares the replies.

A trace file is untrusted input, so the content that is sent is made in pieces and bounded, and so
is each pause.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from smtpproxy.config.address import Address
from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.log.verb_name import END_OF_DATA
from smtpproxy.text.escaping import octets_of, text_of
from smtpproxy.trace.reader import RecordedSession
from smtpproxy.trace.records import Exchanged, announced_bytes

REPLY_LIMIT_S = 300.0
"""The time limit for the connection and for each reply; also the longest pause."""
CONTENT_BYTES = 1024 * 1024 * 1024
"""The longest content of a message that is played."""
NOT_PLAYED = frozenset(
    ("AUTH", "auth_line", "XCLIENT", "X-EXPS", "STARTTLS", "greeting", "unsolicited", "malformed")
)
"""Secrets in these were not recorded; what was sent inside TLS is played in plaintext."""
HELLOS = frozenset(("EHLO", "HELO"))
READ_OCTETS = 4096
FILLER = (b"x" * 76 + b"\r\n") * 512


@dataclass(frozen=True, slots=True)
class ReplayedExchange:
    """A command with its recorded reply and the one that it gets now."""

    exchange: Exchanged
    """The command with its recorded reply."""
    now: str
    """The reply that it gets now."""

    @property
    def differs(self) -> bool:
        """Whether the codes differ."""
        return self.now[:3] != self.exchange.reply[:3]


@dataclass(slots=True)
class ReplayResult:
    """The result of a replay."""

    played: list[ReplayedExchange]
    """The commands that got a reply, in order."""
    stopped: str = ""
    """Why the replay stopped early; empty if it did not."""


async def replay(
    session: RecordedSession, address: Address, *, lock_step: bool = False, as_fast: bool = False
) -> ReplayResult:
    """Play the client's side of a session.

    Args:
        session: The session.
        address: The server.
        lock_step: Send one command at a time instead of the recorded groups.
        as_fast: Leave out the recorded pauses.

    Raises:
        OSError: The server can't be reached.
    """
    async with asyncio.timeout(REPLY_LIMIT_S):
        if address.is_unix:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port)
    return await play(session, reader, writer, lock_step=lock_step, as_fast=as_fast)


async def play(
    session: RecordedSession,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    lock_step: bool = False,
    as_fast: bool = False,
) -> ReplayResult:
    """Play the client's side of a session on an open connection; see `replay`."""
    result = ReplayResult([])
    try:
        await _Player(reader, writer, result).play(session, lock_step, as_fast)
    except TimeoutError:
        result.stopped = "the server did not reply in time"
    except (OSError, EOFError):
        result.stopped = "the server closed the connection"
    except BackendViolation as violation:
        result.stopped = f"the server sent an invalid reply: {text_of(violation.octets)}"
    finally:
        writer.close()
    return result


def _asked(exchanges: list[Exchanged]) -> list[Exchanged]:
    """Return the exchanges to play.

    The EHLO inside TLS is left out: in plaintext, some servers accept no second one.
    """
    found: list[Exchanged] = []
    again = False  # whether the next EHLO repeats one that is played
    for each in exchanges:
        if each.verb == "STARTTLS" and each.code == 220:
            again = any(other.verb in HELLOS for other in found)
        if each.verb in NOT_PLAYED or not each.code:
            continue
        if each.verb in HELLOS and again:
            again = False
        else:
            found.append(each)
    return found


class _Player:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: ReplayResult
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._result = result
        self._replies = ReplyReader()
        self._moved = 0.0  # when something was sent or received last

    async def play(self, session: RecordedSession, lock_step: bool, as_fast: bool) -> None:
        for each in session.exchanges:
            if each.verb == "greeting":
                await self._take(each)
        asked = _asked(session.exchanges)
        loop = asyncio.get_running_loop()
        began, first = loop.time(), session.began
        for framed, exchanges in groupby(asked, lambda each: each.framed):
            pause = framed - first - (loop.time() - began)
            if pause > REPLY_LIMIT_S:
                first += pause - REPLY_LIMIT_S
                pause = REPLY_LIMIT_S
            if not as_fast:
                await asyncio.sleep(max(0.0, pause))  # as long as the client took then
            group = list(exchanges)
            for part in [[each] for each in group] if lock_step else [group]:
                if not await self._play_group(part):
                    return

    async def _play_group(self, group: list[Exchanged]) -> bool:
        """Send a group and read its replies; return whether the replay can continue."""
        for each in group:
            size = announced_bytes(each)
            if size > CONTENT_BYTES:
                self._result.stopped = f"content of {size} bytes is too long"
                return False
        sending = asyncio.create_task(self._send(group))
        try:
            for each in group:
                reply = await self._take(each)
                if each.verb == "DATA" and reply[:3] != each.reply[:3]:
                    self._result.stopped = "the reply to DATA differs, so no content can follow"
                    return False
            async with asyncio.timeout(REPLY_LIMIT_S):
                await sending  # a server may reply before it has read all
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
        return True

    async def _send(self, group: list[Exchanged]) -> None:
        """Send a group, in one write if it is short, while its replies are read.

        A server may not read on before its replies are read.
        """
        unsent = bytearray()
        for each in group:
            for piece in played_pieces(each):
                unsent += piece
                if len(unsent) > len(FILLER):
                    await self._write(bytes(unsent))
                    unsent.clear()
        await self._write(bytes(unsent))

    async def _write(self, octets: bytes) -> None:
        self._writer.write(octets)
        await self._writer.drain()
        self._moved = asyncio.get_running_loop().time()

    async def _take(self, exchange: Exchanged) -> str:
        loop = asyncio.get_running_loop()
        self._moved = loop.time()
        while (found := self._replies.next_reply()) is None:
            try:
                async with asyncio.timeout_at(self._moved + REPLY_LIMIT_S):
                    octets = await self._reader.read(READ_OCTETS)
            except TimeoutError:
                if loop.time() < self._moved + REPLY_LIMIT_S:
                    continue  # long content is still being sent
                raise
            if not octets:
                raise EOFError
            self._replies.receive(octets)
        reply = text_of(found[1].removesuffix(b"\r\n"))
        self._result.played.append(ReplayedExchange(exchange, reply))
        return reply


def played_pieces(exchange: Exchanged) -> Iterator[bytes]:
    """Yield the octets to send, in pieces, with filler for content that was not recorded."""
    end = b"\n" if exchange.bare_lf else b"\r\n"
    line = octets_of(exchange.command) + end if exchange.command else b""
    content = octets_of(exchange.content_received or exchange.content)
    if exchange.verb == "BDAT":
        size = announced_bytes(exchange)
        yield line + content[:size]
        yield from _filler(size - len(content))
    elif exchange.verb != END_OF_DATA:
        yield line
    elif content and not exchange.content_cut:
        yield content
    else:
        whole = content[: content.rfind(b"\n") + 1]
        missing = exchange.content_bytes - len(whole)
        yield whole
        yield from _filler(missing - 2)
        yield (b"\r\n" if missing > 0 else b"") + b".\r\n"


def _filler(size: int) -> Iterator[bytes]:
    while size > 0:
        yield FILLER[:size]
        size -= len(FILLER)
