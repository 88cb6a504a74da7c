"""The resolver: looks up the addresses of servers without blocking the event loop.

It uses its own daemon threads: the loop's thread pool is joined at exit, which would take long if
DNS does not answer.  Concurrent requests for the same name share one look-up, so there is at most
one thread for each name, and no name waits for another.
"""

import asyncio
import contextlib
import errno
import socket
import threading
from typing import Any

from aiohappyeyeballs import AddrInfoType

Found = list[AddrInfoType]
"""Addresses as from `getaddrinfo`: family, type, protocol, "", and the socket address."""
Question = tuple[asyncio.AbstractEventLoop, str, int]

_asked: dict[Question, asyncio.Future[Found | OSError]] = {}


async def look_up(host: str, port: int) -> Found:
    """Return the addresses of a host, at least one.

    Raises:
        OSError: The name has no address, or cannot be resolved.
    """
    with contextlib.suppress(OSError):  # an IP address needs no look-up
        return _find(host, port, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    question = (loop, host, port)
    answer = _asked.get(question)
    if answer is None:
        answer = _asked[question] = loop.create_future()
        _begin(question)
    found = await asyncio.shield(answer)  # other sessions may wait for it, too
    if isinstance(found, OSError):
        raise found.with_traceback(None)
    return found


def _begin(question: Question) -> None:
    name = f"look up {question[1]}"
    try:
        threading.Thread(target=_ask, args=question, name=name, daemon=True).start()
    except RuntimeError:  # the limit of threads is reached
        del _asked[question]
        raise OSError(errno.ENOMEM, "cannot start a thread for a look-up") from None


def _ask(loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
    found: Found | OSError
    try:
        found = _find(host, port)
    except OSError as error:
        found = error
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_answer, (loop, host, port), found)


def _find(host: str, port: int, flags: int = 0) -> Found:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:  # a label that is too long for the DNS
        raise OSError("not a host name") from None
    return [(*each[:4], _with_scope(each[4])) for each in found]


def _with_scope(name: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add the scope of a link-local address to its text, since uvloop ignores the number."""
    if len(name) == 4 and name[3]:
        host, port, _, scope = name
        return f"{host}%{scope}", port
    return name


def _answer(question: Question, found: Found | OSError) -> None:
    _asked.pop(question).set_result(found)
