"""`smtpproxy trace watch`: what it makes of the lines of a service, whole or in parts."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.control_socket import watch_command
from smtpproxy.control_socket.control_client import Stream
from smtpproxy.trace.records import HEADER, Closed, Exchanged, Opened, Record, encode
from smtpproxy.trace.watch import RecordsLost, Watching, encode_line
from tests.support.control_service import control_service

OK = b"HTTP/1.0 200 OK\r\n\r\n"
BEGIN = OK + HEADER + encode_line(Watching()) + b"\n"
Watch = Callable[..., Result]


@pytest.fixture
def asked() -> list[bytes]:
    """The requests that the service got."""
    return []


@pytest.fixture
def watch(tmp_path: Path, asked: list[bytes]) -> Watch:
    """Return what runs the command with a service that sends these parts."""

    def run(parts: Sequence[bytes], *options: str) -> Result:
        path = tmp_path / f"control{len(asked)}"
        arguments = ["trace", "watch", "--control", str(path), "--client", "192.0.2.7", *options]
        with control_service(path, *parts) as requests:
            result = CliRunner().invoke(main, arguments, env={"COLUMNS": "120"})
        asked.extend(requests)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


def session(number: int, *exchanges: str) -> list[Record]:
    name = f"s-{number}"
    return [
        Opened(name, 1.0, "smtp", "192.0.2.7", 4711),
        *(Exchanged(name, line[:4], line, 250, "250 ok", 1, 2, 3, 4) for line in exchanges),
        Closed(
            *(name, 9.0, 1.0, "smtp", "192.0.2.7", 4711, "10.0.0.5:25", "quit"),
            *(8.0, 5, 2, 1, 80, 90, [], [], []),
        ),
    ]


def lines(records: Sequence[Record]) -> bytes:
    return b"".join(encode(each) + b"\n" for each in records)


def test_the_request_is_what_the_options_say(watch: Watch, asked: list[bytes]) -> None:
    watch([BEGIN])
    watch([BEGIN], "--client", "2001:db8::/32", "--content", "full", "--problems")
    assert [each.split()[1] for each in asked] == [
        b"/trace/watch?client=192.0.2.7%2F32&content=none&problems=0",
        b"/trace/watch?client=192.0.2.7%2F32&client=2001%3Adb8%3A%3A%2F32&content=full&problems=1",
    ]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_may_come_in_any_parts(
    watch: Watch, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_command, "GATHER_S", 0.0)
    octets = BEGIN + lines([*session(1, "EHLO x"), *session(2, "NOOP", "QUIT")])
    result = watch([octets[at : at + size] for at in range(0, len(octets), size)])
    assert result.stdout.count("quit after 8.0 s") == 2
    assert result.stderr.splitlines() == [
        "watching 192.0.2.7/32; Ctrl-C ends it",
        "2 sessions",
        "smtpproxy: the service has ended the watch: it stops, or a new version took over",
    ]


def test_lines_are_shown_in_time_if_there_is_no_pause_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    ours, theirs = socket.socketpair()

    def wait(timeout_s: float, _descriptor: int) -> bool:
        """Let a line come just before the pause is long enough."""
        nonlocal now
        now += 0.9 * min(timeout_s, watch_command.GATHER_S)
        assert now < 2, "nothing is shown"
        return bool(theirs.send(b"line\n"))

    monkeypatch.setattr(watch_command, "wait", wait)
    monkeypatch.setattr(watch_command, "monotonic", lambda: now)
    stream = Stream.__new__(Stream)
    stream.connection, stream.received = ours, b""
    with ours, theirs:
        batches = watch_command._batches(stream)
        assert [set(next(batches)), set(next(batches))] == [{b"line"}] * 2


def test_it_ends_after_so_many_sessions(watch: Watch) -> None:
    records = [record for number in range(5) for record in session(number, "NOOP")]
    for options in ([], ["--follow"]):
        result = watch([BEGIN + lines(records)], "--count", "2", *options)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "2 sessions")
        assert "s-1" in result.stdout
        assert "s-2" not in result.stdout


def test_what_was_lost_is_reported(watch: Watch) -> None:
    octets = BEGIN + encode_line(RecordsLost(7)) + b"\n" + lines(session(1, "NOOP"))
    result = watch([octets], "--count", "1")
    assert result.exit_code == 3
    assert "7 records lost: there were more than could be shown" in result.stderr


def test_open_sessions_are_kept_within_a_bound(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_command, "KEPT_BYTES", 2000)
    *records, closed = session(1, *["NOOP"] * 100)
    result = watch([BEGIN + lines([*records, closed])], "--count", "1")
    assert result.exit_code == 3
    shown = result.stdout.count("NOOP ─")
    assert "quit after 8.0 s" in result.stdout
    assert shown < 20
    result = watch([BEGIN + lines([*session(2, "NOOP"), *session(3, "NOOP")])], "--count", "2")
    assert result.exit_code == 0, "the memory of a session is free again"


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (OK + b'{"what":"trace_file","version":2}\n', "is another version of smtpproxy: reload it"),
        (BEGIN + b"no record\n", "sent a line that is no record"),
        (BEGIN + b"x" * 10_000, "sent a line that is too long"),
        (b"HTTP/1.0 404 Not Found\r\n\r\nnot found\n", "is an older version without it"),
        (
            b"HTTP/1.0 503 \r\n\r\n8 watches are on\n",
            "smtpproxy: 8 watches are on\n",
        ),
        (b"", "smtpproxy: no answer at "),
    ],
)
def test_what_the_service_may_not_send(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, octets: bytes, message: str
) -> None:
    monkeypatch.setattr(watch_command, "LINE_BYTES", 1000)
    result = watch([octets])
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--client", "192.0.2.7/24"], 'write "192.0.2.0/24" for the network'),
        (["--client", "all"], "'all' is not a network; write, for example"),
        (["--client", "::1"] * 32, "at most 32"),
        (["--follow", "--problems"], "leave out --follow"),
        (["--count", "0"], "is not a whole number of at least 1"),
    ],
)
def test_wrong_usage_is_answered_without_a_service(
    tmp_path: Path, options: list[str], message: str
) -> None:
    arguments = ["trace", "watch", "--control", str(tmp_path / "x"), "--client", "192.0.2.7"]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_a_service_it_names_the_socket(tmp_path: Path) -> None:
    arguments = ["trace", "watch", "--control", str(tmp_path / "x"), "--client", "192.0.2.7"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr == f"smtpproxy: no service answers at {tmp_path}/x\n"
