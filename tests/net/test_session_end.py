"""The end of a session: its causes, and what the other side gets."""

import asyncio
from collections.abc import Callable

import pytest

from smtpproxy.core.content import BareNewlines
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.verbs import Sync
from smtpproxy.net.backend.connection_slots import SlotQueue
from smtpproxy.net.client_connection import ClientConnection
from tests.net.fakes import GROUP, Opener, Server, Stage, Transport, greeted, in_content
from tests.support.compiled import only_pure


def hold_too_long(stage: Stage) -> None:
    """Let the time limit of held replies pass while one is held."""
    stage.sends(GROUP)
    stage.servers[0].says(b"250 a\r\n")
    stage.clock.now += 0.2
    stage.timeouts.release()


def sends_fast(stage: Stage) -> None:
    """Send more commands than the rate limit allows, and let the pause be over."""
    stage.sends(b"NOOP\r\n" * 30)
    stage.clock.now += 10
    stage.session._slow_down()


SERVER_POOL = "smtpproxy.net.backend.server_pool"


class TestEnd:
    async def test_quit_closes_both(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"QUIT\r\n")
        stage.servers[0].says(b"221 bye\r\n")
        assert stage.gets() == b"221 bye\r\n"
        assert stage.client.state == "closed"
        assert stage.servers[0].transport.state == "aborted"
        stage.connection.connection_lost(None)
        assert not stage.timeouts.sessions

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

    async def test_the_mta_gets_nothing_more_for_a_lost_client(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.sends(b"text\r\n.\r\nQUIT\r\n")
        stage.connection.connection_lost(ConnectionResetError())
        assert stage.servers[0].heard() == b"text\r\n.\r\n"
        assert stage.servers[0].transport.state == "aborted"
        assert stage.ended == "client_lost"
        assert not stage.timeouts.sessions

    async def test_a_reset_after_quit_is_a_quit(self, opened: Opener) -> None:
        """As Outlook does."""
        stage = await greeted(opened)
        stage.sends(b"QUIT\r\n")
        stage.connection.connection_lost(ConnectionResetError())
        assert stage.servers[0].heard() == b"QUIT\r\n"
        assert stage.ended == "quit"
        assert not stage.timeouts.sessions

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
        stage = await greeted(opened, policy=SessionPolicy(sync=Sync.SAFE))
        stage.sends(b"GET / HTTP/1.1\r\n")
        assert stage.gets().startswith(b"221 2.7.0 ")
        assert stage.client.state == "open"
        assert stage.client.eof_sent
        stage.sends(b"Host: x\r\n")
        stage.connection.eof_received()
        assert stage.client.state == "closed"

    async def test_a_client_that_does_not_close_is_closed_after_a_time_limit(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.wait(30)
        assert stage.client.state == "aborted"

    async def test_a_client_that_keeps_sending_is_closed_at_the_same_time_limit(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.wait(29)
        stage.sends(b"x")
        stage.wait(1)
        assert stage.client.state == "aborted"

    async def test_a_session_is_reported_once_whatever_comes_after_its_end(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.sends(b"POST / HTTP/1.1\r\n")
        stage.sends(b"Host: x\r\n")
        stage.timeouts.drain()
        stage.connection.eof_received()
        stage.connection.connection_lost(None)
        assert [summary.reason for summary in stage.watcher.summaries] == ["forbidden_command"]

    async def test_a_lost_backend_is_421_at_once(self, opened: Opener) -> None:
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

    @only_pure
    async def test_an_internal_error_ends_the_session_and_is_reported(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = await greeted(opened)

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("smtpproxy.core.framing.Framer.receive", fail)
        stage.sends(b"NOOP\r\n")
        assert stage.gets().startswith(b"421 4.3.0 ")
        assert [type(error) for error in stage.watcher.errors] == [ZeroDivisionError]

    @only_pure
    @pytest.mark.parametrize(
        ("broken", "event"),
        [
            ("client_eof", lambda stage: stage.connection.eof_received()),
            ("expire", lambda stage: stage.wait(300)),
            ("backend_lost", lambda stage: stage.servers[0].protocol.connection_lost(None)),
            ("drain", lambda stage: stage.timeouts.drain()),
            (
                "backend_secured",
                lambda stage: stage.session.backend_secured(stage.servers[0].transport),
            ),
            ("flush", hold_too_long),
            ("end", lambda stage: stage.session.cut(reset=False)),
            ("end", lambda stage: stage.session.cut(reset=True)),
            ("client_resumed", sends_fast),
            ("connect_backend", lambda stage: stage.session.backend_connected(Transport())),
            ("connect_client", lambda stage: stage.session.client_secured(stage.client)),
        ],
    )
    async def test_so_does_one_in_any_other_event(
        self,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
        broken: str,
        event: Callable[[Stage], object],
    ) -> None:
        """Else the session would stay; one in a time limit would end the checks of all others."""
        stage = await greeted(opened, commands_per_second=10)

        working = getattr(Pipeline, broken)

        def fail(*_: object) -> None:
            monkeypatch.setattr(Pipeline, broken, working)  # the 421 needs it, too
            raise ZeroDivisionError

        monkeypatch.setattr(Pipeline, broken, fail)
        event(stage)
        assert b"421 4.3.0 " in stage.gets()
        assert stage.ended == "internal_error"
        assert [type(error) for error in stage.watcher.errors] == [ZeroDivisionError]

    @only_pure
    @pytest.mark.parametrize("broken", ["Server.connect", "ServerPool.in_order"])
    async def test_so_does_one_while_it_connects(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError

        where = {"Server.connect": "tests.net.fakes", "ServerPool.in_order": SERVER_POOL}[broken]
        monkeypatch.setattr(f"{where}.{broken}", fail)
        stage = await opened(Server("first"))
        assert stage.gets().startswith(b"421 4.3.0 ")
        assert stage.ended == "internal_error"

    @only_pure
    @pytest.mark.parametrize(
        "broken",
        [
            "tests.net.fakes.Transport.write_eof",
            "smtpproxy.net.backend.server_selection.ServerSelection.end",
            "smtpproxy.net.write_batching.WriteBatcher.flush",
        ],
    )
    async def test_one_at_its_end_leaves_nothing_open(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        slots = SlotQueue(1, 30.0)
        stage = await greeted(opened, connection_slots=slots)
        stage.sends(b"EHLO c\r\n")
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                patched.undo()
                raise ZeroDivisionError

            patched.setattr(broken, fail)
            stage.servers[0].says(b"421 4.3.2 not now\r\n")
        assert [summary.reason for summary in stage.watcher.summaries] == ["backend_closed"]
        assert [type(error) for error in stage.watcher.errors] == [ZeroDivisionError]
        assert stage.client.is_closing()
        assert stage.servers[0].transport.is_closing()
        assert not stage.timeouts.sessions
        assert slots.taken == 0


class TestTime:
    async def test_a_command_that_is_not_answered(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n")
        stage.wait(300)
        assert stage.gets().startswith(b"421 4.4.2 ")
        assert stage.ended == "command_time_limit"

    async def test_a_client_that_sends_nothing(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.wait(300)
        assert stage.ended == "client_time_limit"

    @pytest.mark.parametrize("policy", [BareNewlines.NORMALIZE, BareNewlines.REJECT])
    @pytest.mark.parametrize("cut", [1, 2, 100])
    async def test_content_that_ends_for_the_client_only_is_reported_at_once(
        self, opened: Opener, cut: int, policy: BareNewlines
    ) -> None:
        stage = await in_content(opened, policy=SessionPolicy(bare_newlines=policy))
        octets = b"text\n.\n"
        for at in range(0, len(octets), cut):
            stage.sends(octets[at : at + cut])
        assert stage.watcher.notes == [("content_not_ended", {"kind": "bare_lf"})]
        stage.sends(b"more\n.\n")
        assert len(stage.watcher.notes) == 1

    @pytest.mark.parametrize("line", [b"NOOPNO", b"\0\0\0\0\0\0"])
    async def test_a_command_line_that_never_ends(self, opened: Opener, line: bytes) -> None:
        stage = await greeted(opened)
        stage.wait(100)
        for octet in line:
            stage.wait(49)
            stage.sends(bytes([octet]))
        assert not stage.ended
        stage.wait(60)
        assert stage.ended == "client_time_limit"

    async def test_a_refused_line_that_never_ends(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"x" * 3000)
        assert stage.gets().startswith(b"500 5.5.2 ")
        for _ in range(5):
            stage.wait(50)
            stage.sends(b"x")
        assert not stage.ended
        stage.wait(50)
        assert stage.ended == "client_time_limit"

    async def test_a_line_after_a_challenge_that_never_ends(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"AUTH LOGIN\r\n")
        stage.servers[0].says(b"334 user\r\n")
        for _ in range(6):
            stage.wait(49)
            stage.sends(b"x")
        assert not stage.ended
        stage.wait(60)
        assert stage.ended == "client_time_limit"

    async def test_each_line_has_the_whole_time(self, opened: Opener) -> None:
        stage = await greeted(opened)
        for _ in range(5):
            stage.wait(290)
            stage.sends(b"RS")
            stage.wait(290)
            stage.sends(b"ET\r\nNO")
            stage.servers[0].says(b"250 ok\r\n")
            stage.wait(290)
            stage.sends(b"OP\r\n")
            stage.servers[0].says(b"250 ok\r\n")
        assert not stage.ended

    async def test_the_client_has_the_whole_time_after_a_slow_reply(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n")
        stage.wait(290)
        stage.servers[0].says(b"250 ok\r\n")
        stage.wait(290)
        assert not stage.ended
        stage.wait(10)
        assert stage.ended == "client_time_limit"

    async def test_content_that_never_pauses_and_never_ends(self, opened: Opener) -> None:
        stage = await in_content(opened)
        for _ in range(35):
            stage.wait(100)
            stage.sends(b"an octet")
        assert not stage.ended
        stage.wait(100)
        assert stage.gets().startswith(b"421 4.4.2 ")
        assert stage.ended == "message_time_limit"

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

    async def test_replies_are_held_no_longer_than_the_limit(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(GROUP)
        stage.servers[0].says(b"250 a\r\n")
        assert stage.gets() == b""
        stage.clock.now += 0.1
        stage.timeouts.release()
        assert stage.gets() == b""
        stage.clock.now += 0.1
        stage.timeouts.release()
        assert stage.gets() == b"250 a\r\n"

    async def test_replies_held_since_then_are_not_flushed_early(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n" + GROUP)
        stage.servers[0].says(b"250 ok\r\n")
        stage.servers[0].says(b"250 a\r\n")
        stage.clock.now += 0.1
        stage.timeouts.release()
        assert stage.gets() == b"250 ok\r\n"


RECLAIMED = b"421 4.3.2 localhost Error: connection needed for others, try again later\r\n"


class TestReclaimedSlot:
    """The session's connection slot is needed for a client of another address."""

    async def test_an_idle_session_ends_at_once_and_releases_its_slot(self, opened: Opener) -> None:
        slots = SlotQueue(1, 30)
        stage = await greeted(opened, connection_slots=slots)
        assert slots.taken == 1
        stage.session.server_selection.reclaim_slot()
        assert stage.gets() == RECLAIMED
        assert stage.ended == "connection_slot_reclaimed"
        assert slots.taken == 1  # as the MTA counts
        stage.servers[0].transport.protocol.connection_lost(None)
        assert slots.taken == 0

    async def test_a_message_is_finished_however_long_it_takes(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.session.reclaim_slot()
        for _ in range(20):
            stage.sends(b"text\r\n")
            stage.wait(100)
        stage.sends(b".\r\n")
        stage.wait(100)
        stage.servers[0].says(b"250 taken\r\n")
        assert stage.gets() == b"250 taken\r\n" + RECLAIMED

    @pytest.mark.parametrize("begun", [b"", b"MAIL FROM:<a@x>\r\n"], ids=["idle", "MAIL"])
    async def test_repeated_noops_do_not_keep_a_slot(self, opened: Opener, begun: bytes) -> None:
        """With a NOOP always in flight, the session is never idle between transactions."""
        stage = await greeted(opened)
        if begun:
            stage.sends(begun)
            stage.servers[0].says(b"250 a\r\n")
        stage.sends(b"NOOP\r\n" * 2)
        stage.session.reclaim_slot()
        for _ in range(9):
            stage.sends(b"NOOP\r\n")
            stage.servers[0].says(b"250 ok\r\n")
            stage.wait(1)
        assert not stage.ended
        stage.wait(1)
        assert stage.gets().endswith(b"250 ok\r\n" + RECLAIMED)
        assert stage.ended == "connection_slot_reclaimed"

    async def test_a_recipient_that_the_mta_looks_up_is_waited_for(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n")
        stage.servers[0].says(b"250 a\r\n")
        stage.session.reclaim_slot()
        stage.wait(60)
        assert not stage.ended
        stage.servers[0].says(b"250 b\r\n")
        stage.wait(0.1)
        assert stage.ended == "connection_slot_reclaimed"

    async def test_a_client_that_does_not_read_keeps_no_slot(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.sends(b"NOOP\r\n")
        stage.connection.pause_writing()
        stage.session.reclaim_slot()
        stage.wait(10)
        assert stage.ended == "connection_slot_reclaimed"


class TestDrain:
    async def test_an_idle_session_gets_421(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.timeouts.drain()
        assert stage.gets().startswith(b"421 4.3.2 ")

    async def test_a_client_that_does_not_close_delays_the_end_by_seconds_only(
        self, opened: Opener
    ) -> None:
        stage = await greeted(opened)
        stage.timeouts.drain()
        stage.wait(1)
        assert stage.client.state == "open"
        stage.wait(1)
        assert stage.client.state == "aborted"

    async def test_a_transaction_is_finished_first(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.timeouts.drain()
        stage.sends(b"text\r\n.\r\n")
        assert not stage.ended
        stage.servers[0].says(b"250 taken\r\n")
        assert stage.gets().startswith(b"250 taken\r\n421 4.3.2 ")
        assert stage.ended == "draining"

    async def test_waiting_for_the_sessions_ends_with_the_last_one(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.timeouts.drain()
        waiting = asyncio.ensure_future(stage.timeouts.wait_until_empty(None))
        await stage.settle()
        assert not waiting.done()
        other = ClientConnection(stage.session.listener_context)
        other.connection_made(Transport())
        stage.connection.connection_lost(None)
        await stage.settle()
        assert not waiting.done()
        stage.servers[0].says(b"220 mx ready\r\n")
        other.connection_lost(None)
        async with asyncio.timeout(5):
            await waiting
