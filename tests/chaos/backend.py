"""The recording backend: quotes the command in each reply, and fails at random."""

import asyncio
import random
from typing import Any

STALL_S = 0.3


class Record:
    """What the backend has acknowledged, and what it found wrong.

    accepted: the content of each message by its sender, once for each time it was acknowledged.
    wrong: octets that came while a reply was owed, or that are no command.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.accepted: dict[bytes, list[bytes]] = {}
        self.wrong: list[bytes] = []
        self.connections: set[Connection] = set()
        self.faults = 0

    def reset_one(self) -> None:
        """Reset a connection, in any state."""
        if self.connections:
            self.faults += 1
            self.random.choice(sorted(self.connections, key=id)).transport.abort()


class Connection(asyncio.Protocol):
    """One connection of the proxy; each command gets its own reply, sometimes late or never."""

    transport: Any

    def __init__(self, record: Record) -> None:
        self._record = record
        self._unread = b""
        self._owes = False
        self._sender = b""
        self._content: bytes | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._record.connections.add(self)
        self._say(b"220", b"recorder")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._record.connections.discard(self)
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        if self._content is not None:
            self._content += data
            if self._content.endswith(b"\r\n.\r\n"):
                content, self._content = self._content[:-5], None
                self._later(lambda: self._accept(content))
            return
        self._unread += data
        if self._owes or self._unread.count(b"\n") > 1:
            self._record.wrong.append(self._unread)
        if self._unread.endswith(b"\r\n"):
            line, self._unread = self._unread[:-2], b""
            self._later(lambda: self._answer(line))

    def _answer(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"MAIL":
            self._sender = line[line.find(b"<") + 1 : line.rfind(b">")]
        if verb == b"DATA":
            self._content = b""
        code = {b"DATA": b"354", b"QUIT": b"221"}.get(verb, b"250")
        if verb == b"RCPT" and b"<bad" in line:
            code = b"550"
        elif verb in (b"MAIL", b"DATA") and self._record.random.random() < 0.02:
            code = b"451"
            self._content = None
        elif verb not in (b"EHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"QUIT"):
            self._record.wrong.append(line)
        self._say(code, b"to " + line)

    def _accept(self, content: bytes) -> None:
        # Recorded before the reply is sent, so that every acknowledged message is on record.
        if self._record.random.random() < 0.05:
            self._say(b"452", b"to . of " + self._sender)
            return
        self._record.accepted.setdefault(self._sender, []).append(content)
        self._say(b"250", b"to . of " + self._sender)

    def _later(self, act: Any) -> None:
        """Answer at once, or a little later, or never: silently, or with a reset or a 421."""
        self._owes = True
        chance = self._record.random.random()
        if chance < 0.01:
            self._record.faults += 1
            self.transport.abort()
        elif chance < 0.013:
            self._record.faults += 1  # the proxy's time limit will end it
        elif chance < 0.016:
            self._record.faults += 1
            self.transport.write(b"421 421 going down\r\n")
            self.transport.close()
        elif chance < 0.05:
            asyncio.get_running_loop().call_later(
                STALL_S * self._record.random.random(), self._act, act
            )
        else:
            self._act(act)

    def _act(self, act: Any) -> None:
        if not self.transport.is_closing():
            self._owes = False
            act()

    def _say(self, code: bytes, text: bytes) -> None:
        reply = code + b" " + code + b" " + text  # so that it cannot be misread as another reply
        if self._record.random.random() < 0.1:  # in two pieces
            middle = len(reply) // 2
            self.transport.write(reply[:middle])
            asyncio.get_running_loop().call_soon(self._write, reply[middle:] + b"\r\n")
        else:
            self.transport.write(reply + b"\r\n")

    def _write(self, octets: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(octets)
