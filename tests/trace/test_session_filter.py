"""The options that choose recorded sessions by what is in their messages."""

from email.header import Header
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.text.escaping import compact_text_of
from smtpproxy.trace import trace_commands
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.header_pattern import HeaderPattern
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Later, Watched

ENCODED = Header("Überweisung 4711", "utf-8").encode()


def run(command: str, directory: Path, *options: str) -> Result:
    arguments = ["trace", command, "-d", str(directory), *options]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def record(directory: Path, mode: CaptureMode) -> Path:
    trace = TraceRecorder(RotatingFiles(directory, 0, 1 << 20, 5), Later(), kept=mode, most=4096)
    for number, subject in enumerate(("Invoice 1", ENCODED, "lunch")):
        session = Watched(trace)
        header = [f"Message-ID: <m{number}@x.example>", "Received: by a", f"Subject:\r\n {subject}"]
        session.relay(
            *header, "", "X-Body: no header", reply=f"250 2.0.0 Ok: queued as 4bXyz{number}Q"
        )
        session.close()
    trace.close()
    return directory


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    """Return a directory with three messages, and their headers."""
    return record(tmp_path / "trace", CaptureMode.HEADERS)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--message-id", "<M1@x.example>"], ["4bXyz1Q"]),
        (["--message-id", "m2@x"], ["4bXyz2Q"]),
        (["--message-id", "m3@x"], []),
        (["--queue-id", "4BXYZ0"], ["4bXyz0Q"]),
        (["--queue-id", "xyz"], ["4bXyz0Q", "4bXyz1Q", "4bXyz2Q"]),
        (["--queue-id", "xyz", "--message-id", "m0@"], ["4bXyz0Q"]),
        (["--header", "subject=invoice"], ["4bXyz0Q"]),
        (["--header", "Subject=überweisung"], ["4bXyz1Q"]),
        (["--header", f"Subject={ENCODED}"], ["4bXyz1Q"]),
        (["--header", "Subject"], ["4bXyz0Q", "4bXyz1Q", "4bXyz2Q"]),
        (["--header", "Received=lunch"], []),
        (["--header", "X-Body"], []),
        (["--header", "ject=lunch"], []),
        (["--header", "Subject=u", "--queue-id", "z2"], ["4bXyz2Q"]),
    ],
)
def test_messages_are_found(messages: Path, options: list[str], found: list[str]) -> None:
    listed = run("list", messages, "--json", *options)
    assert [name for name in ("4bXyz0Q", "4bXyz1Q", "4bXyz2Q") if name in listed.stdout] == found
    counted = run("stats", messages, *options)
    assert counted.stdout.startswith(f"{len(found)} session")
    assert (listed.exit_code, listed.stderr, counted.exit_code, counted.stderr) == (0, "", 0, "")


def test_several_become_one_capture(messages: Path, tmp_path: Path) -> None:
    result = run("export", messages, "--header", "Subject=u", "--pcapng", str(tmp_path / "x"))
    assert "2 sessions" in result.stderr


def test_of_too_many_messages_with_a_header_the_latest_count(
    messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_commands, "CHOSEN_SESSIONS", 2)
    result = run("list", messages, "--header", "Subject", "--json")
    assert [number for number in "012" if f"4bXyz{number}Q" in result.stdout] == ["1", "2"]
    assert result.stderr == "only the latest 2 messages with this header count\n"


def test_where_no_header_is_recorded_it_is_said(tmp_path: Path) -> None:
    directory = record(tmp_path / "trace", CaptureMode.NONE)
    result = run("list", directory, "--header", "Subject")
    assert len(result.stdout.splitlines()) == 1
    assert "no header is recorded here: the setting trace.content chooses that" in result.stderr


@pytest.mark.parametrize("wrong", ["", "=x", "two words=x", "Überschrift"])
def test_what_is_no_header_field_is_answered_with_an_example(messages: Path, wrong: str) -> None:
    result = run("list", messages, "--header", wrong)
    assert result.exit_code == 2
    assert "is no header field; write, for example, Subject=invoice" in result.stderr


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"Subject: a\r\n\r\nb", True),
        (b"Subject: a", True),
        (b"From: x\nSUBJECT:a\n\n", True),
        (b"\r\nSubject: a", False),
        (b"X-Subject: a\r\n\r\n", False),
        (b"From: x\r\n Subject: a\r\n\r\n", False),
        (b"Subject: =?utf-8?q?=41?=\r\n\r\n", True),
        (b"Subject: =?none?q?=41?=\r\n\r\n", False),
        (b"Subject: =?utf-8?b?!?=\r\n\r\n", False),
        (b"Subject: " + b"=?a?q?" * 10_000 + b"\r\n\r\n", True),
        (b"Subject: a\xff\0" + b"\xff" * 500, True),
        (b"", False),
    ],
)
def test_any_content_is_searched(content: bytes, found: bool) -> None:
    assert HeaderPattern.of("Subject=a").is_in(compact_text_of(content)) is found
