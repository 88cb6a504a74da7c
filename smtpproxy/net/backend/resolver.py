"""The resolver: the addresses of servers, looked up without blocking the loop.

In threads of our own, which nobody waits for: the loop's pool is joined at the exit, and with a
resolver that does not answer the service would outlive its end by many seconds.  Who asks for what
is being looked up already is told the same answer: however many clients come meanwhile, it is one
thread for each name, and no name waits for another.
"""

import asyncio
import contextlib
import errno
import socket
import threading
from typing import Any

from aiohappyeyeballs import AddrInfoType

Found = list[AddrInfoType]
"""Addresses as `getaddrinfo` gives them: family, type, protocol, "", and what to connect to."""
Question = tuple[asyncio.AbstractEventLoop, str, int]

_asked: dict[Question, asyncio.Future[Found | OSError]] = {}


async def look_up(host: str, port: int) -> Found:
    """Return the addresses of a host, not none, for connections; raises OSError if it has none."""
    with contextlib.suppress(OSError):  # an address needs nobody to be asked
        return _find(host, port, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    question = (loop, host, port)
    answer = _asked.get(question)
    if answer is None:
        answer = _asked[question] = loop.create_future()
        _begin(question)
    found = await asyncio.shield(answer)  # others may wait for it, too
    if isinstance(found, OSError):
        raise found.with_traceback(None)
    return found


def _begin(question: Question) -> None:
    name = f"look up {question[1]}"
    try:
        threading.Thread(target=_ask, args=question, name=name, daemon=True).start()
    except RuntimeError:  # there are as many threads as there may be
        del _asked[question]
        raise OSError(errno.ENOMEM, "no thread to look a name up") from None


def _ask(loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
    found: Found | OSError
    try:
        found = _find(host, port)
    except OSError as error:
        found = error
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
        loop.call_soon_threadsafe(_answer, (loop, host, port), found)


def _find(host: str, port: int, flags: int = 0) -> Found:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:  # a label that is too long for the DNS
        raise OSError("not a host name") from None
    return [(*each[:4], _with_scope(each[4])) for each in found]


def _with_scope(name: tuple[Any, ...]) -> tuple[Any, ...]:
    """Write the scope of a link-local address into its text: uvloop looks at nothing else."""
    if len(name) == 4 and name[3]:
        host, port, _, scope = name
        return f"{host}%{scope}", port
    return name


def _answer(question: Question, found: Found | OSError) -> None:
    _asked.pop(question).set_result(found)
