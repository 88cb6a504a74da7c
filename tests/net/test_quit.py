"""After a client that goes away between transactions the MTA gets QUIT, and no reset."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.net.raw import Client, Connection, Proxy, on_uvloop, proxy, within_a_second

STARTTLS = 'tls = "starttls"\ncertificate = "@/mx.pem"'
ENVELOPE = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\n"
ENDS = {"close": Client.close, "reset": Client.reset, "half-close": Client.half_close}


class Strict(Connection):
    """A connection that records how it ended.

    error: what the MTA's log would show; None for a correct end.
    """

    error: Exception | None = None
    waits_for_eof = False

    def eof_received(self) -> None:
        self.waits_for_eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        super().connection_lost(exc)


async def ended(here: Proxy) -> Strict:
    """Wait until the proxy has closed its connection to the MTA."""
    await here.lets_go()
    (connection,) = here.mta.connections
    assert isinstance(connection, Strict)
    return connection


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("said", [b"", b"EHLO c\r\n", ENVELOPE + b"RSET\r\n"])
@on_uvloop
async def test_between_transactions_the_mta_gets_quit_and_no_reset(
    said: bytes, end: Callable[[Client], None], tmp_path: Path
) -> None:
    async with proxy(tmp_path, Strict) as here:
        await here.start()
        one = here.client()
        await one.hear(b"220 mx\r\n")
        for line in said.splitlines(keepends=True):
            one.send(line)
            await one.hear(b"250 ")
        end(one)
        mta = await ended(here)
        assert mta.lines == [*said.splitlines(), b"QUIT"]
        assert mta.error is None
        assert mta.waits_for_eof


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@on_uvloop
async def test_amid_a_transaction_the_mta_gets_no_quit(
    end: Callable[[Client], None], tmp_path: Path
) -> None:
    async with proxy(tmp_path, Strict) as here:
        await here.start()
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.send(ENVELOPE)
        await one.hear(b"250 ok\r\n250 ok\r\n")
        end(one)
        assert (await ended(here)).lines == ENVELOPE.splitlines()


@on_uvloop
async def test_a_client_lost_inside_tls_is_followed_by_quit_too(tmp_path: Path) -> None:
    async with proxy(tmp_path, Strict) as here:
        await here.start(listener=STARTTLS)
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.send(b"STARTTLS\r\n")
        await one.hear(b"220 2.0.0 Ready to start TLS\r\n")
        await one.secure()
        one.send(b"EHLO inside\r\n")
        await one.hear(b"250 ")
        one.reset()
        assert (await ended(here)).lines == [b"EHLO inside", b"QUIT"]


@on_uvloop
async def test_a_client_that_reads_no_replies_is_followed_by_quit_too(tmp_path: Path) -> None:
    """The MTA's connection is paused then, and its reply to QUIT is read all the same."""
    long = b"".join(b"250-%b\r\n" % (b"x" * 900) for _ in range(60)) + b"250 ok\r\n"
    async with proxy(tmp_path, Strict) as here:
        await here.start()
        here.mta.replies[b"NOOP"] = long
        one = here.client()
        await one.hear(b"220 mx\r\n")

        def blocked() -> bool:
            idle = not here.session.pipeline.in_flight
            if idle and not here.session._client_blocked:
                one.send(b"NOOP\r\n")
            return idle and here.session._client_blocked

        await within_a_second(blocked)
        one.reset()
        mta = await ended(here)
        assert mta.lines[-1] == b"QUIT"
        assert mta.error is None


@on_uvloop
async def test_an_mta_that_does_not_answer_quit_is_closed_all_the_same(tmp_path: Path) -> None:
    async with proxy(tmp_path, Strict) as here:
        await here.start()
        here.mta.silent = {b"QUIT"}
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.reset()
        assert (await ended(here)).lines == [b"QUIT"]


@on_uvloop
async def test_the_slot_is_free_when_the_mta_has_closed(tmp_path: Path) -> None:
    async with proxy(tmp_path, Strict) as here:
        await here.start(backend="max_connections = 1")
        here.mta.silent = {b"QUIT"}
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.reset()
        await within_a_second(lambda: here.mta.connections[0].lines)
        assert here.held()["slots"] == 1
        here.mta.release()
        await ended(here)


@on_uvloop
async def test_an_mta_inside_tls_gets_quit_too(tmp_path: Path) -> None:
    async with proxy(tmp_path, Strict) as here:
        here.mta.replies[b"EHLO"] = b"250-mx\r\n250 STARTTLS\r\n"
        await here.start(backend='tls = "starttls"\nca_file = "@/ca.pem"')
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.send(b"EHLO c\r\n")
        await one.hear(b"250 ")
        one.reset()
        mta = await ended(here)
        assert mta.lines[-2:] == [b"EHLO c", b"QUIT"]
        assert mta.error is None
