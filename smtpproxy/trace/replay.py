"""A session played again: the client's side against any server, and how the replies differ."""

import asyncio
from dataclasses import dataclass
from itertools import groupby

from smtpproxy.config.address import Address
from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.text.escaping import octets_of, text_of
from smtpproxy.trace.reader import RecordedSession
from smtpproxy.trace.records import Exchanged

REPLY_LIMIT_S = 300.0
"""How long one reply is waited for, or the connection."""
NOT_PLAYED = frozenset(
    ("AUTH", "auth-line", "XCLIENT", "X-EXPS", "STARTTLS", "greeting", "unasked", "misframed")
)
"""What was secret in these was not recorded; what was said inside TLS is played in plaintext."""
HELLOS = frozenset(("EHLO", "HELO"))
READ_OCTETS = 4096
FILLER = b"x" * 76 + b"\r\n"


@dataclass(frozen=True, slots=True)
class ReplayedExchange:
    """A command with the reply of then and of now; `now` is empty where none came."""

    exchange: Exchanged
    now: str

    @property
    def differs(self) -> bool:
        """Whether the codes differ."""
        return self.now[:3] != self.exchange.reply[:3]


@dataclass(slots=True)
class ReplayResult:
    """What came of it; stopped: why not all was played, if so."""

    played: list[ReplayedExchange]
    stopped: str = ""


async def replay(
    session: RecordedSession, address: Address, *, lock_step: bool = False, as_fast: bool = False
) -> ReplayResult:
    """Play the client's side; raises OSError if the server can't be reached."""
    async with asyncio.timeout(REPLY_LIMIT_S):
        if address.is_unix:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port)
    performance = ReplayResult([])
    try:
        await _Player(reader, writer, performance).play(session, lock_step, as_fast)
    except TimeoutError:
        performance.stopped = "the server did not reply in time"
    except (OSError, EOFError):
        performance.stopped = "the server closed the connection"
    except BackendViolation as violation:
        performance.stopped = f"the server sent what is no reply: {text_of(violation.octets)}"
    finally:
        writer.close()
    return performance


def _asked(exchanges: list[Exchanged]) -> list[Exchanged]:
    """Return what is to be played.

    The hello that is said again inside TLS is not: in plaintext, some servers take no second one.
    """
    found: list[Exchanged] = []
    again = False  # the next hello says one again that is played
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
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, performance: ReplayResult
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._performance = performance
        self._replies = ReplyReader()

    async def play(self, session: RecordedSession, lock_step: bool, as_fast: bool) -> None:
        for each in session.exchanges:
            if each.verb == "greeting":
                await self._take(each)
        asked = _asked(session.exchanges)
        loop = asyncio.get_running_loop()
        began, first = loop.time(), session.began
        for framed, exchanges in groupby(asked, lambda each: each.framed):
            if not as_fast:
                await asyncio.sleep(max(0.0, framed - first - (loop.time() - began)))
            group = list(exchanges)
            for part in [[each] for each in group] if lock_step else [group]:
                if not await self._play_group(part):
                    return

    async def _play_group(self, group: list[Exchanged]) -> bool:
        """Send a group and take its replies; False when it can't go on from there."""
        self._writer.write(b"".join(map(played_octets, group)))
        for each in group:
            reply = await self._take(each)
            if each.verb == "DATA" and reply[:3] != each.reply[:3]:
                self._performance.stopped = "DATA was answered otherwise, so no content can follow"
                return False
        return True

    async def _take(self, exchange: Exchanged) -> str:
        async with asyncio.timeout(REPLY_LIMIT_S):
            while (found := self._replies.next_reply()) is None:
                octets = await self._reader.read(READ_OCTETS)
                if not octets:
                    raise EOFError
                self._replies.receive(octets)
        reply = text_of(found[1].removesuffix(b"\r\n"))
        self._performance.played.append(ReplayedExchange(exchange, reply))
        return reply


def played_octets(exchange: Exchanged) -> bytes:
    """Return what is sent; content that was not recorded is replaced by as much of nothing."""
    end = b"\n" if exchange.bare_lf else b"\r\n"
    line = octets_of(exchange.line) + end if exchange.line else b""
    content = octets_of(exchange.came or exchange.content)
    if exchange.verb == "BDAT":
        return line + content.ljust(exchange.octets, b"-")[: exchange.octets]
    if exchange.verb != ".":
        return line
    if content and not exchange.cut:
        return content
    whole = content[: content.rfind(b"\n") + 1]
    missing = max(0, exchange.octets - len(whole))
    filler = (FILLER * (missing // len(FILLER) + 1))[: max(0, missing - 2)]
    return whole + filler + (b"\r\n" if missing else b"") + b".\r\n"
