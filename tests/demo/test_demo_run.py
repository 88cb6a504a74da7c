"""The demo as a whole: it shows 9 waits against 4, and fails if any reply is wrong."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from smtpproxy.demo import demo_run, harness
from smtpproxy.demo.legacy import DEFAULT_FAILING, FAILINGS
from tests.demo.stand_in import StandIn
from tests.support.processes import free_port

DEADLINE_S = 20.0


def demonstrate(failing: str = DEFAULT_FAILING, recipients: int = 3) -> int:
    return demo_run.main(rtt=0.01, recipients=recipients, serve=False, failing=failing)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Run the demo with a stand-in for the proxy that has the fault the test sets."""
    monkeypatch.setattr(harness, "App", StandIn)
    monkeypatch.setattr(StandIn, "fault", "")
    return StandIn


@pytest.mark.parametrize("failing", FAILINGS)
def test_the_proxy_makes_up_for_every_fault(
    failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demonstrate(failing) == 0
    shown = capsys.readouterr()
    assert "WRONG" not in shown.out
    assert shown.err == ""


def picture_between(shown: str, begin: str, end: str, waits: int) -> str:
    """Return a part of what is shown; its dialogue has 9 waits directly, and `waits` proxied."""
    picture = shown[shown.index(begin) : shown.index(end)]
    assert re.search(r"directly +9 waits", picture)
    assert re.search(rf"through smtpproxy +{waits} waits", picture)
    return picture


def test_nine_waits_become_four(capsys: pytest.CaptureFixture[str]) -> None:
    assert demonstrate() == 0
    shown = capsys.readouterr().out
    picture = picture_between(shown, "(b)", "(c)", 4)
    assert "MAIL | RCPT | RCPT | RCPT | DATA" in picture
    assert "250 | 250 | 250 | 250 | 354" in picture
    assert "PIPELINING" in picture
    assert "closed: 4 of 5 replies lost" in shown


def test_nine_waits_become_two_with_early_pipelining(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert demonstrate() == 0
    picture = picture_between(capsys.readouterr().out, "(g)", "\ndialogue", 2)
    assert "EHLO | MAIL | RCPT | RCPT | RCPT | DATA" in picture
    assert "PIPECONNECT" in picture


def test_the_command_prints_the_summary_and_exits_0() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "smtpproxy", "demo", "--rtt", "0.01"],
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
        encoding="utf-8",
    )
    assert process.stderr == ""
    assert re.search(r"\(b\) 3 recipients, all accepted +directly +9 ", process.stdout)
    assert re.search(r"smtpproxy +4 ", process.stdout)


def test_many_recipients_are_drawn_in_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert demonstrate(recipients=50) == 0
    shown = capsys.readouterr().out
    picture = shown[shown.index("(b)") : shown.index("(c)")]
    assert "56 waits" in picture
    assert "47 more" in picture
    assert picture.count("\n") < 60


def test_no_line_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert demonstrate() == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_output_is_ascii_on_an_ascii_terminal() -> None:
    code = (
        "from smtpproxy.demo.demo_run import main; import sys;"
        "sys.exit(main(rtt=0.01, recipients=3, serve=False, failing='none'))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert process.stdout.isascii()
    assert b"#########" in process.stdout
    assert b"?" not in process.stdout


@pytest.mark.usefixtures("stand_in")
def test_the_stand_in_without_a_fault_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert demonstrate() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("swapped", "in the reply, but got "),
        ("lost", "expected 354, but none came in"),
        ("not offered", "expected PIPELINING in the reply"),
        ("unguarded", "expected 554, but got 354"),
        ("chatty", "the MTA received data while it owed a reply"),
        ("altered", "a message was changed on the way"),
    ],
)
def test_a_faulty_proxy_is_reported_in_bounded_time(
    fault: str,
    problem: str,
    stand_in: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stand_in, "fault", fault)
    if fault == "lost":  # only this one is waited for
        monkeypatch.setattr(harness, "REPLY_DEADLINE_S", 0.5)
    began = time.monotonic()
    # With its other faults the MTA would fail on early data anyway.
    assert demonstrate("none") == 1
    assert time.monotonic() - began < DEADLINE_S
    shown = capsys.readouterr().out
    assert problem in shown.replace("\n", "")
    assert "WRONG" in shown


def test_a_proxy_that_does_not_start_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(StandIn):
        async def start(self) -> None:
            raise OSError("no more sockets")

    monkeypatch.setattr(harness, "App", Broken)
    assert demonstrate() == 1
    assert "start or stop failed: no more sockets" in capsys.readouterr().out


async def test_serve_draws_sessions_until_interrupted() -> None:
    code = (
        "from smtpproxy.demo.demo_run import main; import sys;"
        "sys.exit(main(rtt=0.01, recipients=3, serve=True, failing='opensmtpd'))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            advice = (await process.stdout.readuntil(b"Ctrl-C")).decode()
            match = re.search(r"through smtpproxy +127.0.0.1:(\d+)", advice)
            assert match is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", int(match[1]))
            writer.write(b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRSET\r\nQUIT\r\n")
            writer.write_eof()
            replies = await reader.read()
            assert [line[:3] for line in replies.splitlines() if line[3:4] == b" "] == [
                b"220", b"250", b"250", b"250", b"221",
            ]  # fmt: skip
            writer.close()
            await writer.wait_closed()
            drawn = (await process.stdout.readuntil(b"QUIT \xe2\x94\x80")).decode()
            assert "EHLO | MAIL | RSET | QUIT" in drawn
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert errors == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_serve_shows_the_live_page() -> None:
    admin = f"127.0.0.1:{free_port()}"
    code = (
        "from smtpproxy.demo.demo_run import main; import sys;"
        "sys.exit(main(rtt=0.01, recipients=3, serve=True, failing='none', admin=sys.argv[1]))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, admin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            advice = (await process.stdout.readuntil(b"Ctrl-C")).decode()
            assert f"http://{admin}/" in advice
            assert await _got(admin, "/readyz") == b"ready\n"
            assert b'smtpproxy_server_up{backend="backend-1"' in await _got(admin, "/metrics")
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _got(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n\r\n")[2]


def test_a_narrow_terminal_gets_fewer_columns_and_whole_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    assert demonstrate() == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert "\x1b" not in shown
    summary = shown[shown.index("\ndialogue") :]
    assert "…" not in summary
    assert re.search(r"\(f\) +directly +13 +\d\.\d\d 13 correct", summary)
    assert "correct, in order; one at a time to the MTA" in " ".join(summary.split())
