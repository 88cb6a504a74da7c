"""The session: order of commands, back-pressure and rate limit."""

from smtpproxy.core.policy import SessionPolicy
from tests.net.fakes import GROUP, Opener, greeted, in_content


async def test_a_group_is_sent_one_by_one_and_answered_in_one_write(
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
    stage.write_batcher.flush()
    assert stage.client.written == [b"250 a\r\n250 b\r\n354 go\r\n"]


async def test_octets_that_come_before_the_greeting_wait(opened: Opener) -> None:
    stage = await opened()
    stage.sends(b"EHLO x\r\n")
    assert stage.servers[0].heard() == b""
    stage.servers[0].says(b"220 mx\r\n")
    assert stage.servers[0].heard() == b"EHLO x\r\n"


async def test_observers_get_content_as_sent_and_as_received(opened: Opener) -> None:
    shown: list[tuple[bytes, bytes]] = []
    stage = await greeted(opened, content=lambda _, sent, came: shown.append((sent, came)))
    stage.sends(GROUP)
    for reply in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
        stage.servers[0].says(reply)
    assert shown == []
    stage.servers[0].heard()
    stage.sends(b"a\nb\r\n.\r\nQUIT\r\n")
    assert shown == [(b"a\r\nb\r\n.\r\n", b"a\nb\r\n.\r\n")]
    assert stage.servers[0].heard() == b"a\r\nb\r\n.\r\n"


async def test_all_four_addresses_are_reported(opened: Opener) -> None:
    stage = await greeted(opened)
    ends = stage.watcher.ends.all()
    assert (ends.client, ends.proxy) == ("192.0.2.1:4711", "198.51.100.1:25")


class TestBackPressure:
    async def test_a_backend_that_does_not_read_pauses_the_client(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.servers[0].protocol.pause_writing()
        assert not stage.client.reading
        stage.servers[0].protocol.resume_writing()
        assert stage.client.reading

    async def test_a_client_that_does_not_read_pauses_both_sides(self, opened: Opener) -> None:
        stage = await greeted(opened)
        stage.connection.pause_writing()
        assert not stage.client.reading
        assert not stage.servers[0].transport.reading
        stage.connection.resume_writing()
        assert stage.client.reading
        assert stage.servers[0].transport.reading

    async def test_observers_get_stalled_when_the_client_is_paused(self, opened: Opener) -> None:
        stage = await in_content(opened)
        stage.servers[0].protocol.pause_writing()
        assert stage.watcher.stalls == 1
        stage.servers[0].protocol.resume_writing()
        assert stage.watcher.stalls == 1

    async def test_a_full_queue_pauses_the_client_and_loses_nothing(self, opened: Opener) -> None:
        stage = await greeted(opened, policy=SessionPolicy(queue_commands=3, queue_bytes=32))
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

    async def test_a_paused_client_is_read_to_its_end_after_the_session(
        self, opened: Opener
    ) -> None:
        """Closed with octets unread, its connection would be reset, and the last reply lost."""
        stage = await greeted(opened, policy=SessionPolicy(queue_commands=3, queue_bytes=32))
        stage.sends(b"NOOP\r\n" * 8)
        assert not stage.client.reading
        stage.servers[0].says(b"421 enough\r\n")
        assert stage.gets() == b"421 enough\r\n"
        assert stage.client.reading


class TestPace:
    async def test_a_client_that_is_too_fast_is_read_more_slowly(self, opened: Opener) -> None:
        stage = await greeted(opened, commands_per_second=10)
        stage.sends(b"NOOP\r\n" * 10)
        assert stage.client.reading  # a group within a second's worth is no offence
        stage.sends(b"NOOP\r\n" * 5)
        assert not stage.client.reading
        assert stage.watcher.slowdowns == 1
        stage.clock.now += 0.4
        stage.session._slow_down()
        assert not stage.client.reading
        stage.clock.now += 0.2
        stage.session._slow_down()
        assert stage.client.reading
        assert stage.watcher.slowdowns == 1
        for _ in range(15):
            stage.servers[0].says(b"250 ok\r\n")
        assert stage.gets() == b"250 ok\r\n" * 15  # nothing was dropped

    async def test_a_pause_does_not_count_as_inactivity(self, opened: Opener) -> None:
        stage = await greeted(opened, commands_per_second=1)
        stage.sends(b"NOOP\r\n" * 400)
        for _ in range(400):
            stage.servers[0].says(b"250 ok\r\n")
        for _ in range(350):
            stage.wait(1)
            stage.session._slow_down()
        assert not stage.ended
        assert not stage.client.reading


async def test_the_summary_has_the_totals_of_the_session(opened: Opener) -> None:
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
