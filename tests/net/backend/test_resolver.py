"""Names are looked up without blocking the loop, and do not delay its end."""

import asyncio
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from smtpproxy.net.backend.resolver import look_up


class Resolver:
    """Replaces the system's resolver: knows one name, and answers on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *, flags: int = 0, **_: object) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        self.asked.append(host)
        self.answers.wait(20)
        if host != "mx.example":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


async def test_an_address_is_not_looked_up() -> None:
    ((family, *_, name),) = await look_up("2001:db8::1", 25)
    assert (family, name) == (socket.AF_INET6, ("2001:db8::1", 25, 0, 0))


async def test_the_scope_of_an_address_stays_with_it() -> None:
    """The scope is in the text too, since uvloop connects to that."""
    (found,) = await look_up("fe80::1%lo", 25)
    assert found[4] == (f"fe80::1%{socket.if_nametoindex('lo')}", 25)


async def test_concurrent_requests_for_a_name_share_one_look_up(resolver: Resolver) -> None:
    """A slow resolver does not get a request for each client."""
    waiting = [asyncio.create_task(look_up("mx.example", 25)) for _ in range(100)]
    gone = asyncio.create_task(look_up("mx.example", 25))
    await asyncio.sleep(0)
    gone.cancel()
    resolver.answers.set()
    found = await asyncio.gather(*waiting)
    assert {answer[0][4] for answer in found} == {("192.0.2.1", 25)}
    assert resolver.asked == ["mx.example"]
    await look_up("mx.example", 25)
    assert len(resolver.asked) == 2  # again, since it may have moved


async def test_all_requests_get_the_same_error(resolver: Resolver) -> None:
    waiting = [asyncio.create_task(look_up("nobody.example", 25)) for _ in range(3)]
    await asyncio.sleep(0)
    resolver.answers.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(why) for why in found] == [socket.gaierror] * 3


async def test_an_invalid_name_is_an_error_like_others() -> None:
    with pytest.raises(OSError, match="not a host name"):
        await look_up("x" * 64 + ".example", 25)


async def test_one_name_does_not_wait_for_another(resolver: Resolver) -> None:
    slow = [asyncio.create_task(look_up(f"{n}.example", 25)) for n in range(50)]
    last = asyncio.create_task(look_up("mx.example", 25))
    async with asyncio.timeout(20):
        while "mx.example" not in resolver.asked:
            await asyncio.sleep(0.001)
    resolver.answers.set()
    await last
    await asyncio.gather(*slow, return_exceptions=True)


def test_the_end_does_not_wait_for_an_answer() -> None:
    program = """
import asyncio, socket, time
from smtpproxy.net.backend.resolver import look_up
known = socket.getaddrinfo
def asked(host, *more, flags=0, **others):
    if flags:
        raise socket.gaierror(socket.EAI_NONAME, "not an address")
    time.sleep(60)
socket.getaddrinfo = asked
async def main():
    try:
        async with asyncio.timeout(0.1):
            await look_up("mx.example", 25)
    except TimeoutError:
        print("given up", flush=True)
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"given up\n", b"")
