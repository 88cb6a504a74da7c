"""Clients that pipeline, check that each reply is their own, and vanish at random."""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

from smtpproxy.core import replies


@dataclass
class Reported:
    """The replies that clients got.

    meant: the content of each message by its sender, which is another for each attempt.
    acknowledged: the senders of the messages whose acceptance the client got.
    refused: how many commands and messages were refused.
    attempts: how many there were.  out_of_step: replies that belong to another command.
    """

    meant: dict[bytes, bytes] = field(default_factory=dict)
    acknowledged: list[bytes] = field(default_factory=list)
    refused: int = 0
    attempts: int = 0
    out_of_step: list[tuple[bytes, bytes]] = field(default_factory=list)


class Ended(Exception):
    """The session has ended: 421, or nothing more was received."""


async def send_messages(
    port: int, name: str, reported: Reported, over: asyncio.Event, seed: int
) -> None:
    """Send messages, one session after the other, until stopped."""
    chance = random.Random(seed)
    while not over.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            continue
        try:
            async with asyncio.timeout(20):
                await _session(reader, writer, name, reported, chance)
        except (Ended, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if chance.random() < 0.1:
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _session(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    name: str,
    reported: Reported,
    chance: random.Random,
) -> None:
    await _reply(reader, b"recorder", reported)
    writer.write(b"EHLO client\r\n")
    await _reply(reader, b"EHLO client", reported)
    for _ in range(chance.randrange(1, 5)):
        reported.attempts += 1
        sender = f"{name}-{reported.attempts}".encode()
        bad = b"bad" if chance.random() < 0.3 else b""
        group = [
            b"MAIL FROM:<%b>" % sender,
            b"RCPT TO:<1-%b>" % sender,
            b"RCPT TO:<%b2-%b>" % (bad, sender),
            b"DATA",
        ]
        writer.write(b"\r\n".join(group) + b"\r\n")
        codes = [await _reply(reader, command, reported) for command in group]
        if codes[-1] != b"354":
            continue
        content = (b"%b of %b\r\n" % (sender * 3, sender)) * chance.choice((1, 20, 3000))
        reported.meant[sender] = content.removesuffix(b"\r\n")
        writer.write(content[: len(content) // 2])
        end = chance.random()
        if end < 0.03:
            writer.transport.abort()
            raise Ended
        if end < 0.06:
            writer.write_eof()  # a message cut short is none
            raise Ended
        if end < 0.09:
            await asyncio.sleep(chance.random())
        quits = chance.random() < 0.2
        writer.write(content[len(content) // 2 :] + b".\r\n" + b"QUIT\r\n" * quits)
        if await _reply(reader, b". of " + sender, reported) == b"250":
            reported.acknowledged.append(sender)
        if quits:
            break
    else:
        writer.write(b"QUIT\r\n")
    await _reply(reader, b"QUIT", reported)


async def _reply(reader: asyncio.StreamReader, to: bytes, reported: Reported) -> bytes:
    """Read the reply to a command, and return its code; the reply quotes the command."""
    reply = line = await reader.readuntil(b"\n")
    while line[3:4] == b"-":
        line = await reader.readuntil(b"\n")
        reply += line
    if reply.startswith(b"421 "):
        raise Ended
    if to == b"DATA" and reply in (replies.NO_VALID_RECIPIENTS, replies.RECIPIENTS_PUT_OFF):
        return reply[:3]
    if to not in reply or reply[:3] != reply[4:7]:
        reported.out_of_step.append((to, reply))
        raise Ended
    reported.refused += reply[:1] in b"45"
    return reply[:3]
