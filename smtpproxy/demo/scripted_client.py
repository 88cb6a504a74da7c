"""The client of the demo: sends a dialogue, counts its waits, and checks every reply.

It pipelines only if the EHLO reply offers PIPELINING, stops after the first group with an
unexpected reply, and has a deadline for every wait.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from smtpproxy.demo.dialogues import Groups, ScriptedExchange, is_early, lock_step
from smtpproxy.timeline.labels import shown


@dataclass(slots=True)
class Outcome:
    """The result on the client's side."""

    replies: list[bytes] = field(default_factory=list)
    """The replies in order, the greeting first."""
    waits: int = 0
    """How often the client waited for replies."""
    seconds: float = 0.0
    """The duration of the session."""
    problems: list[str] = field(default_factory=list)
    """What was not as expected, each as a sentence."""
    ended: str = ""
    """Empty if every reply came, else "closed" or "silent"."""


async def play(
    groups: Groups,
    address: str,
    *,
    deadline_s: float,
    insist: bool = False,
    on_wait: Callable[[], None] | None = None,
) -> Outcome:
    """Send a dialogue and check the replies; network errors become problems of the outcome.

    Args:
        groups: The commands with their expected replies.
        address: Where to connect, HOST:PORT.
        deadline_s: The limit of each single wait.
        insist: Whether to pipeline even if PIPELINING is not offered.
        on_wait: Called after each wait.
    """
    outcome = Outcome()
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError) as error:
        outcome.problems.append(f"cannot connect to {address}: {error or 'deadline passed'}")
        return outcome
    try:
        await _Client(reader, writer, outcome, deadline_s, on_wait).play(groups, insist=insist)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(deadline_s):
                await writer.wait_closed()
    return outcome


_GREETING = ScriptedExchange(b"", 220)


class _Client:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        outcome: Outcome,
        deadline_s: float,
        on_wait: Callable[[], None] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._outcome = outcome
        self._deadline_s = deadline_s
        self._on_wait = on_wait

    async def play(self, groups: Groups, *, insist: bool) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        complete = await self._turns(groups, insist=insist)
        self._outcome.seconds = loop.time() - started
        if complete:
            await self._expect_end()

    async def _turns(self, groups: Groups, *, insist: bool) -> bool:
        first, *rest = groups
        begin = ((_GREETING, *first),) if is_early(groups) else ((_GREETING,), first)
        for group in begin:
            if not await self._turn(group):
                return False
        offered = b"PIPELINING" in self._outcome.replies[1].upper()
        for group in rest if offered or insist else lock_step(tuple(rest)):
            if not await self._turn(group):
                return False
        return True

    async def _turn(self, group: tuple[ScriptedExchange, ...]) -> bool:
        """Send one group and wait for its replies; return whether all were as expected."""
        self._writer.write(b"".join(exchange.command for exchange in group))
        self._outcome.waits += 1
        before = len(self._outcome.problems)
        for number, exchange in enumerate(group):
            reply = await self._read_reply()
            if reply is None or not reply.endswith(b"\r\n"):
                self._missing(group[number:], reply)
                return False
            self._outcome.replies.append(reply)
            if problem := _problem(exchange, reply):
                self._outcome.problems.append(problem)
        if self._on_wait is not None:
            self._on_wait()
        return len(self._outcome.problems) == before

    async def _read_reply(self) -> bytes | None:
        """Return the next reply, incomplete if the connection ended; None if it is late."""
        reply = b""
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    line = await self._reader.readline()
                    reply += line
                    if not line.endswith(b"\r\n") or line[3:4] != b"-":
                        return reply
        except TimeoutError:
            return None
        except (OSError, ValueError):
            return reply

    def _missing(self, exchanges: tuple[ScriptedExchange, ...], got: bytes | None) -> None:
        self._outcome.ended = "silent" if got is None else "closed"
        how = f"none came in {self._deadline_s:g} s" if got is None else "the connection was closed"
        count = len(exchanges)
        more = f" (and {count - 1} more)" if count > 1 else ""
        self._outcome.problems.append(
            f"{name_of(exchanges[0])}: expected {exchanges[0].code}, but {how}{more}"
        )

    async def _expect_end(self) -> None:
        """Check that nothing but the end of the connection follows the 221."""
        try:
            async with asyncio.timeout(self._deadline_s):
                surplus = await self._reader.read(1024)
        except TimeoutError:
            self._outcome.problems.append("QUIT: the connection was not closed after the reply")
            return
        except OSError:
            return
        if surplus:
            self._outcome.problems.append(f"one reply too many: {shown(surplus)}")


def name_of(exchange: ScriptedExchange) -> str:
    """Return the name of the command in messages: the escaped line, or "end of data"."""
    if not exchange.command:
        return "greeting"
    if exchange.command.endswith(b"\r\n.\r\n") or exchange.command == b".\r\n":
        return "end of data"
    return shown(exchange.command)


def _problem(exchange: ScriptedExchange, reply: bytes) -> str | None:
    if reply[:3] != b"%d" % exchange.code:
        return f"{name_of(exchange)}: expected {exchange.code}, but got {shown(reply)}"
    if exchange.names not in reply:
        return (
            f"{name_of(exchange)}: expected {shown(exchange.names)} in the reply, "
            f"but got {shown(reply)}"
        )
    return None
