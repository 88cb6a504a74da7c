"""The session: which server, who is read, who is closed, and when."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from smtpproxy.core.commands import Sync
from smtpproxy.core.rules import Rules
from smtpproxy.net.client import ClientConnection
from smtpproxy.net.pace import Pacing
from tests.net.edge import Server, Stage, Transport

Opener = Callable[..., Awaitable[Stage]]

GROUP = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n"


async def greeted(opened: Opener, *servers: Server, **options: object) -> Stage:
    """Open a stage whose first server has greeted."""
    stage = await opened(*servers, **options)
    stage.servers[0].says(b"220 mx ready\r\n")
    assert stage.gets() == b"220 mx ready\r\n"
    return stage


async def in_content(opened: Opener) -> Stage:
    """Open a stage that has come to message content."""
    stage = await greeted(opened)
    stage.sends(GROUP)
    for reply in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
        stage.servers[0].says(reply)
    assert stage.gets() == b"250 a\r\n250 b\r\n354 go\r\n"
    stage.servers[0].heard()
    return stage


async def test_a_group_goes_out_one_by_one_and_its_replies_come_back_in_one_write(
    opened: Opener,
) -> None:
    stage = await greeted(opened)
    server = stage.servers[0]
    stage.sends(GROUP)
    assert server.heard() == b"MAIL FROM:<a@x>\r\n"
    server.says(b"250 a\r\n")
    assert server.heard() == b"RCPT TO:<b@y>\r\n"
    server.says(b"250 b\r\n")
    assert server.heard() == b"DATA\r\n"
    assert stage.client.written == []
    server.says(b"354 go\r\n")
    stage.outbox.flush()
    assert stage.client.written == [b"250 a\r\n250 b\r\n354 go\r\n"]


async def test_octets_that_come_before_the_greeting_wait(opened: Opener) -> None:
    stage = await opened()
    stage.sends(b"EHLO x\r\n")
    assert stage.servers[0].heard() == b""
    stage.servers[0].says(b"220 mx\r\n")
    assert stage.servers[0].heard() == b"EHLO x\r\n"


async def test_content_is_shown_as_it_goes_to_the_backend_and_as_it_came(opened: Opener) -> None:
    shown: list[tuple[bytes, bytes]] = []
    stage = await greeted(opened, content=lambda sent, came: shown.append((sent, came)))
    stage.sends(GROUP)
    for reply in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
        stage.servers[0].says(reply)
    assert shown == []
    stage.servers[0].heard()
    stage.sends(b"a\nb\r\n.\r\nQUIT\r\n")
    assert shown == [(b"a\r\nb\r\n.\r\n", b"a\nb\r\n.\r\n")]
    assert stage.servers[0].heard() == b"a\r\nb\r\n.\r\n"


async def test_both_ends_of_both_connections_are_told(opened: Opener) -> None:
    stage = await greeted(opened)
    ends = stage.watcher.ends()
    assert (ends.client, ends.proxy) == ("192.0.2.1:4711", "unix")


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
        assert not stage.sweeper.sessions

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
        stage = await opened(Server("one", "unreachable"), rules=Rules(hostname=b"mx.example"))
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


class TestBackPressure:
    async def test_a_backend_that_does_not_read_silences_the_client(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.servers[0].protocol.pause_writing()
        assert not stage.client.reading
        stage.servers[0].protocol.resume_writing()
        assert stage.client.reading

    async def test_a_client_that_does_not_read_silences_both(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.connection.pause_writing()
        assert not stage.client.reading
        assert not stage.servers[0].transport.reading
        stage.connection.resume_writing()
        assert stage.client.reading
        assert stage.servers[0].transport.reading

    async def test_observers_learn_that_the_client_is_silenced(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.servers[0].protocol.pause_writing()
        assert stage.watcher.stalls == 1
        stage.servers[0].protocol.resume_writing()
        assert stage.watcher.stalls == 1

    async def test_a_full_queue_silences_the_client_and_loses_nothing(self, opened: Opener) -> None:
        stage = await greeted(opened, rules=Rules(queue_commands=3, queue_octets=32))
        stage.sends(b"NOOP\r\n" * 8)
        assert not stage.client.reading
        for _ in range(8):
            assert stage.servers[0].heard() == b"NOOP\r\n"
            stage.servers[0].says(b"250 ok\r\n")
        assert stage.gets() == b"250 ok\r\n" * 8
        assert stage.client.reading

    async def test_a_client_that_never_reads_runs_into_the_time_limit(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.connection.pause_writing()
        stage.wait(299)
        assert not stage.ended
        stage.wait(1)
        assert stage.ended == "client_time_limit"
        stage.wait(30)
        assert stage.client.state == "aborted"

    async def test_a_silenced_client_is_read_to_its_end_once_the_session_is_over(
        self, opened: Opener
    ) -> None:
        """Closed with octets unread, its connection would be reset, and the last reply lost."""
        stage = await greeted(opened, rules=Rules(queue_commands=3, queue_octets=32))
        stage.sends(b"NOOP\r\n" * 8)
        assert not stage.client.reading
        stage.servers[0].says(b"421 enough\r\n")
        assert stage.gets() == b"421 enough\r\n"
        assert stage.client.reading


class TestPace:
    async def test_a_client_that_is_too_fast_is_read_more_slowly(self, opened: Opener) -> None:
        pacing = Pacing(10)
        stage = await greeted(opened, pacing=pacing)
        stage.sends(b"NOOP\r\n" * 10)
        assert stage.client.reading  # a group within a second's worth is no offence
        stage.sends(b"NOOP\r\n" * 5)
        assert not stage.client.reading
        assert (pacing.slowed, stage.watcher.slowdowns) == (1, 1)
        stage.clock.now += 0.4
        stage.session._slow_down()
        assert not stage.client.reading
        stage.clock.now += 0.2
        stage.session._slow_down()
        assert stage.client.reading
        assert (pacing.slowed, stage.watcher.slowdowns) == (1, 1)
        for _ in range(15):
            stage.servers[0].says(b"250 ok\r\n")
        assert stage.gets() == b"250 ok\r\n" * 15  # nothing was dropped

    async def test_a_pause_is_not_taken_for_silence(self, opened: Opener) -> None:
        stage = await greeted(opened, pacing=Pacing(1))
        stage.sends(b"NOOP\r\n" * 400)
        for _ in range(400):
            stage.servers[0].says(b"250 ok\r\n")
        for _ in range(350):
            stage.wait(1)
            stage.session._slow_down()
        assert not stage.ended
        assert not stage.client.reading


class TestEnd:
    async def test_quit_closes_both(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"QUIT\r\n")
        stage.servers[0].says(b"221 bye\r\n")
        assert stage.gets() == b"221 bye\r\n"
        assert stage.client.state == "closed"
        assert stage.servers[0].transport.state == "aborted"
        stage.connection.connection_lost(None)
        assert not stage.sweeper.sessions

    async def test_a_half_closed_client_gets_all_its_replies(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.sends(b"text\r\n.\r\nQUIT\r\n")
        assert stage.connection.eof_received() is True
        stage.servers[0].says(b"250 taken\r\n")
        stage.servers[0].says(b"221 bye\r\n")
        assert stage.gets() == b"250 taken\r\n221 bye\r\n"
        assert stage.client.state == "closed"

    async def test_a_half_closed_client_that_did_not_quit_is_closed_when_served(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n")
        stage.connection.eof_received()
        assert not stage.ended
        stage.servers[0].says(b"250 ok\r\n")
        assert stage.ended == "client_closed"
        assert stage.client.state == "closed"

    async def test_what_a_vanished_client_had_sent_still_reaches_the_backend(
        self, opened: Opener
    ) -> None:
        """Outlook resets its connection right behind QUIT."""
        stage = await in_content(opened)
        stage.sends(b"text\r\n.\r\nQUIT\r\n")
        stage.connection.connection_lost(ConnectionResetError())
        stage.servers[0].says(b"250 taken\r\n")
        assert stage.servers[0].heard() == b"text\r\n.\r\nQUIT\r\n"
        assert stage.gets() == b""
        stage.servers[0].says(b"221 bye\r\n")
        assert stage.ended == "quit"
        assert not stage.sweeper.sessions

    @pytest.mark.parametrize("half", [True, False], ids=["EOF", "reset"])
    async def test_content_cut_short_reaches_the_backend_without_its_end(
        self, opened: Opener, half: bool
    ) -> None:
        stage = await in_content(opened)
        stage.sends(b"text\r\n.\r")
        if half:
            stage.connection.eof_received()
        else:
            stage.connection.connection_lost(ConnectionResetError())
        assert stage.ended == "client_lost"
        assert stage.servers[0].heard() == b"text\r\n"
        assert stage.servers[0].transport.state == "aborted"

    async def test_the_last_reply_is_not_lost_by_a_reset(self, opened: Opener) -> None:
        """The client still sends when it is refused: it is read until it closes."""
        stage = await greeted(opened, rules=Rules(sync=Sync.SAFE))
        stage.sends(b"GET / HTTP/1.1\r\n")
        assert stage.gets().startswith(b"221 2.7.0 ")
        assert stage.client.state == "open"
        assert stage.client.eof_sent
        stage.sends(b"Host: x\r\n")
        stage.connection.eof_received()
        assert stage.client.state == "closed"

    async def test_a_client_that_does_not_close_is_not_waited_for_for_long(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.wait(30)
        assert stage.client.state == "aborted"

    async def test_a_client_that_goes_on_sending_is_not_waited_for_any_longer(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.wait(29)
        stage.sends(b"x")
        stage.wait(1)
        assert stage.client.state == "aborted"

    async def test_a_session_is_reported_once_whatever_comes_behind_its_end(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.sends(b"Host: x\r\n")
        stage.sweeper.drain()
        stage.connection.eof_received()
        stage.connection.connection_lost(None)
        assert [summary.reason for summary in stage.watcher.summaries] == ["forbidden_command"]

    async def test_a_lost_backend_is_told_at_once(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.sends(b"text\r\n")
        stage.servers[0].protocol.connection_lost(ConnectionResetError())
        assert stage.gets().startswith(b"421 4.4.2 ")
        assert stage.ended == "backend_lost"

    async def test_a_connection_that_comes_too_late_is_closed(self, opened: Opener) -> None:
        stage = await opened(Server("one", "unreachable"))
        late = Server("late")
        stage.session.backend_connected(late.transport)
        assert late.transport.state == "aborted"

    async def test_an_error_of_ours_ends_the_session_and_is_reported(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = await greeted(opened)

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("smtpproxy.core.framing.Framer.receive", fail)
        stage.sends(b"NOOP\r\n")
        assert stage.gets().startswith(b"421 4.3.0 ")
        assert [type(error) for error in stage.watcher.errors] == [ZeroDivisionError]


class TestTime:
    async def test_a_command_that_is_not_answered(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n")
        stage.wait(300)
        assert stage.gets().startswith(b"421 4.4.2 ")
        assert stage.ended == "command_time_limit"

    async def test_a_client_that_says_nothing(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.wait(300)
        assert stage.ended == "client_time_limit"

    async def test_content_that_stops(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.wait(179)
        stage.sends(b"an octet")
        stage.wait(179)
        assert not stage.ended
        stage.wait(1)
        assert stage.ended == "content_time_limit"

    async def test_an_end_of_data_that_is_not_answered(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.sends(b".\r\n")
        stage.wait(599)
        assert not stage.ended
        stage.wait(1)
        assert stage.ended == "end_of_data_time_limit"

    async def test_replies_are_held_no_longer_than_told(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(GROUP)
        stage.servers[0].says(b"250 a\r\n")
        assert stage.gets() == b""
        stage.clock.now += 0.1
        stage.sweeper.release()
        assert stage.gets() == b""
        stage.clock.now += 0.1
        stage.sweeper.release()
        assert stage.gets() == b"250 a\r\n"

    async def test_replies_held_since_then_are_not_flushed_early(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n" + GROUP)
        stage.servers[0].says(b"250 ok\r\n")
        stage.servers[0].says(b"250 a\r\n")
        stage.clock.now += 0.1
        stage.sweeper.release()
        assert stage.gets() == b"250 ok\r\n"


class TestDrain:
    async def test_an_idle_session_gets_421(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sweeper.drain()
        assert stage.gets().startswith(b"421 4.3.2 ")

    async def test_a_client_that_does_not_close_delays_the_end_by_seconds_only(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sweeper.drain()
        stage.wait(1)
        assert stage.client.state == "open"
        stage.wait(1)
        assert stage.client.state == "aborted"

    async def test_a_transaction_is_finished_first(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.sweeper.drain()
        stage.sends(b"text\r\n.\r\n")
        assert not stage.ended
        stage.servers[0].says(b"250 taken\r\n")
        assert stage.gets().startswith(b"250 taken\r\n421 4.3.2 ")
        assert stage.ended == "draining"

    async def test_waiting_for_the_sessions_ends_with_the_last_one(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sweeper.drain()
        waiting = asyncio.ensure_future(stage.sweeper.wait_until_empty(5))
        await stage.settle()
        assert not waiting.done()
        other = ClientConnection(stage.session.service)
        other.connection_made(Transport())
        stage.connection.connection_lost(None)
        await stage.settle()
        assert not waiting.done()
        other.connection_lost(None)
        await waiting


async def test_the_summary_tells_what_the_session_came_to(opened: Opener) -> None:
    stage = await in_content(opened)
    stage.clock.now += 2
    stage.sends(b"text\r\n.\r\nQUIT\r\n")
    stage.servers[0].says(b"250 taken\r\n")
    stage.servers[0].says(b"221 bye\r\n")
    (summary,) = stage.watcher.summaries
    assert (summary.reason, summary.seconds, summary.messages) == ("quit", 2.0, 1)
    assert (summary.commands, summary.pipelined) == (4, 3)
    assert summary.client_octets == len(GROUP + b"text\r\n.\r\nQUIT\r\n")
    assert summary.backend_octets == sum(
        map(
            len, (b"220 mx ready\r\n", b"250 a\r\n250 b\r\n354 go\r\n", b"250 taken\r\n221 bye\r\n")
        )
    )
