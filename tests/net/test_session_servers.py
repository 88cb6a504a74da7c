"""The session: which server it uses, and how the others are released."""

from collections.abc import Awaitable, Callable

import pytest

from smtpproxy.core.policy import SessionPolicy
from tests.net.fakes import Opener, Server, Stage, greeted


class TestServers:
    async def test_the_next_is_tried_when_one_cannot_be_reached(self, opened: Opener) -> None:
        stage = await opened(Server("one", "unreachable"), Server("two"))
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"
        assert stage.watcher.down == [("one", "Connection refused")]
        assert stage.watcher.servers == ["two"]

    async def test_the_next_is_tried_when_one_refuses_with_its_greeting(
        self, opened: Opener
    ) -> None:
        stage = await opened(Server("one"), Server("two"))
        stage.servers[0].says(b"554-no\r\n554 ")
        stage.servers[0].says(b"no\r\n")
        await stage.settle()
        assert stage.servers[0].transport.state == "aborted"
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"

    async def test_the_end_of_one_that_was_given_up_is_not_that_of_the_next(
        self, opened: Opener
    ) -> None:
        stage = await opened(Server("one"), Server("two"))
        stage.servers[0].says(b"554 no\r\n")
        await stage.settle()
        stage.servers[0].protocol.connection_lost(None)
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"
        assert not stage.ended

    async def test_no_server_is_connected_for_a_lost_client(self, opened: Opener) -> None:
        stage = await opened(Server("one", "silent"))
        stage.connection.eof_received()
        stage.connection.connection_lost(None)
        stage.wait(30)
        await stage.settle()
        assert stage.ended
        assert stage.servers[0].behaviour == "cancelled"
        assert not stage.timeouts.sessions

    async def test_an_invalid_greeting_is_a_refusal(self, opened: Opener) -> None:
        stage = await opened(Server("one"), Server("two"))
        stage.servers[0].says(b"SSH-2.0-OpenSSH\r\n")
        await stage.settle()
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"

    async def test_a_greeting_in_pieces_is_passed_on_whole(self, opened: Opener) -> None:
        stage = await opened(Server("one"), Server("two"))
        stage.servers[0].says(b"220-a\r\n22")
        stage.servers[0].says(b"0 b\r\n")
        assert stage.gets() == b"220-a\r\n220 b\r\n"
        stage.sends(b"NOOP\r\n")
        stage.servers[0].says(b"250 ok\r\n")
        assert stage.gets() == b"250 ok\r\n"

    async def test_the_last_refusal_is_what_the_client_gets(self, opened: Opener) -> None:
        stage = await opened(Server("one"), Server("two", "unreachable"))
        stage.servers[0].says(b"421 one is busy\r\n")
        await stage.settle()
        assert stage.gets() == b"421 one is busy\r\n"
        assert stage.ended == "backend_unavailable"

    async def test_none_reachable_is_421(self, opened: Opener) -> None:
        stage = await opened(
            Server("one", "unreachable"), policy=SessionPolicy(hostname=b"mx.example")
        )
        assert stage.gets().startswith(b"421 4.4.1 mx.example ")
        assert stage.client.eof_sent

    async def test_one_that_closes_without_a_greeting_counts_as_not_reachable(
        self, opened: Opener
    ) -> None:
        stage = await opened(Server("one"))
        stage.servers[0].protocol.eof_received()
        stage.servers[0].protocol.connection_lost(None)
        assert stage.gets().startswith(b"421 4.4.1 ")
        assert stage.watcher.down == [("one", "closed without a greeting")]

    async def test_the_next_is_tried_when_connecting_takes_too_long(self, opened: Opener) -> None:
        stage = await opened(Server("one", "silent"), Server("two"))
        stage.wait(29)
        assert not stage.watcher.down
        stage.wait(1)
        await stage.settle()
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"
        assert stage.watcher.down == [("one", "connect time limit")]

    async def test_a_server_reached_after_it_was_cancelled_is_ignored(self, opened: Opener) -> None:
        """The loop had made the connection when the time limit was reached."""
        stage = await opened(Server("one", "late"), Server("two"))
        late = stage.servers[0].protocol
        stage.wait(30)
        late.connection_made(stage.servers[0].transport)
        assert stage.servers[0].transport.state == "aborted"
        await stage.settle()
        stage.servers[1].says(b"220 two\r\n")
        late.data_received(b"220 one\r\n250 a reply to nothing\r\n")
        late.pause_writing()
        late.resume_writing()
        late.eof_received()
        late.connection_lost(None)
        assert stage.gets() == b"220 two\r\n"
        assert stage.watcher.servers == ["two"]
        stage.sends(b"NOOP\r\n")
        assert stage.servers[1].heard() == b"NOOP\r\n"
        assert not stage.ended

    async def test_the_next_is_tried_when_no_greeting_comes(self, opened: Opener) -> None:
        stage = await opened(Server("one"), Server("two"))
        stage.wait(300)
        await stage.settle()
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"

    async def test_each_server_has_the_whole_time_to_greet(self, opened: Opener) -> None:
        stage = await opened(Server("one"), Server("two"), Server("three"))
        for seconds in (300, 299, 1, 299):
            stage.wait(seconds)
            await stage.settle()
        assert [name for name, _ in stage.watcher.down] == ["one", "two"]
        stage.servers[2].says(b"220 three\r\n")
        assert stage.gets() == b"220 three\r\n"

    async def test_there_is_no_failover_once_the_client_was_greeted(self, opened: Opener) -> None:
        stage = await greeted(opened, Server("one"), Server("two"))
        stage.servers[0].protocol.eof_received()
        assert stage.gets().startswith(b"421 4.4.2 ")
        assert stage.servers[1].protocol is None


async def _greets(stage: Stage, octets: bytes) -> None:
    stage.servers[0].says(octets)
    await stage.settle()


async def _closes(stage: Stage) -> None:
    stage.servers[0].protocol.eof_received()
    await stage.settle()


async def _is_silent(stage: Stage, seconds: float) -> None:
    stage.wait(seconds)
    await stage.settle()


HAPPENINGS: dict[str, tuple[str, Callable[[Stage], Awaitable[None]], bytes]] = {
    "greeted with 450": ("", lambda stage: _greets(stage, b"450 not you\r\n"), b"450 not you\r\n"),
    "greeted with 421": ("", lambda stage: _greets(stage, b"421 busy\r\n"), b"421 busy\r\n"),
    "greeted with an invalid reply": ("", lambda stage: _greets(stage, b"SSH-\r\n"), b"421 4.3.0 "),
    "closed without a greeting": ("", _closes, b"421 4.4.1 "),
    "connect time limit": ("silent", lambda stage: _is_silent(stage, 30), b"421 4.4.1 "),
    "greeting time limit": ("", lambda stage: _is_silent(stage, 300), b"421 4.4.2 "),
}
"""The reason, the server's behaviour, how the test plays it, and what the client gets."""


class TestWhoseTrouble:
    """A failure at a server with the client's address says nothing about the server."""

    @pytest.mark.parametrize("reported", [False, True])
    @pytest.mark.parametrize("why", HAPPENINGS)
    async def test_only_a_server_without_the_clients_address_is_down(
        self, opened: Opener, why: str, reported: bool
    ) -> None:
        behaviour, happens, reply = HAPPENINGS[why]
        stage = await opened(Server("one", behaviour, reported=reported))
        await happens(stage)
        assert stage.gets().startswith(reply)
        assert stage.watcher.down == ([] if reported else [("one", why)])

    @pytest.mark.parametrize("reported", [False, True])
    @pytest.mark.parametrize("why", HAPPENINGS)
    async def test_the_client_is_logged_with_the_reason_and_continues(
        self, opened: Opener, why: str, reported: bool
    ) -> None:
        behaviour, happens, _ = HAPPENINGS[why]
        stage = await opened(Server("one", behaviour, reported=reported), Server("two"))
        await happens(stage)
        assert stage.watcher.given_up == [("one", why)]
        stage.servers[1].says(b"220 two\r\n")
        assert stage.gets() == b"220 two\r\n"

    @pytest.mark.parametrize("greeting", [b"450 not you\r\n", b"554 not you\r\n"])
    async def test_a_single_server_gets_the_same(self, opened: Opener, greeting: bytes) -> None:
        stage = await opened(Server("one", reported=True))
        stage.servers[0].says(greeting)
        assert stage.gets() == greeting
        assert stage.watcher.given_up == [("one", f"greeted with {greeting[:3].decode()}")]

    @pytest.mark.parametrize(
        "behaviour",
        [
            "not for this client",
            "EMFILE",
            "ENFILE",
            "ENOBUFS",
            "ENOMEM",
            "EADDRINUSE",
            "EADDRNOTAVAIL",
        ],
    )
    async def test_failures_of_the_client_or_this_machine_are_not_the_servers(
        self, opened: Opener, behaviour: str
    ) -> None:
        stage = await opened(Server("one", behaviour))
        assert stage.gets().startswith(b"421 4.4.1 ")
        assert stage.watcher.down == []
        ((server, why),) = stage.watcher.given_up
        assert server == "one"
        assert why

    @pytest.mark.parametrize("behaviour", ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "EPERM"])
    async def test_a_server_that_no_client_can_reach_is_down(
        self, opened: Opener, behaviour: str
    ) -> None:
        stage = await opened(Server("one", behaviour))
        assert [name for name, _ in stage.watcher.down] == ["one"]

    @pytest.mark.parametrize("second", ["greets", "closes", "is silent"])
    async def test_the_client_gets_the_greeting_of_the_last_mta_that_refused(
        self, opened: Opener, second: str
    ) -> None:
        """However the next server fails."""
        stage = await opened(
            Server("one", reported=True), Server("two", "silent" if second == "is silent" else "")
        )
        await _greets(stage, b"450 4.7.1 not you\r\n")
        if second == "closes":
            stage.servers[1].protocol.eof_received()
        elif second == "is silent":
            await _is_silent(stage, 30)
        else:
            stage.servers[1].says(b"421 4.3.2 two is busy\r\n")
        expected = b"421 4.3.2 two is busy\r\n" if second == "greets" else b"450 4.7.1 not you\r\n"
        assert stage.gets() == expected
