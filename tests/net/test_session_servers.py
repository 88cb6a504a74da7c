"""The session: which server it gets, and what becomes of those it does not."""

from smtpproxy.core.policy import SessionPolicy
from tests.net.fakes import Opener, Server, greeted


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

    async def test_nobody_is_connected_to_for_a_client_that_is_gone(self, opened: Opener) -> None:
        stage = await opened(Server("one", "silent"))
        stage.connection.eof_received()
        stage.connection.connection_lost(None)
        stage.wait(30)
        await stage.settle()
        assert stage.ended
        assert stage.servers[0].behaviour == "cancelled"
        assert not stage.timeouts.sessions

    async def test_a_greeting_that_is_no_reply_is_a_refusal(self, opened: Opener) -> None:
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

    async def test_one_that_is_reached_after_it_was_given_up_has_no_say(
        self, opened: Opener
    ) -> None:
        """The loop had its connection ready when the time limit was over."""
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
