"""The log: what a line looks like, that nobody can forge one, and that it never stops the mail."""

import errno
import fcntl
import io
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time
from typing import BinaryIO

import pytest
import structlog

from smtpproxy.log import line_writer, log
from tests.support.programs import command

EVIL = b'a\r\n{"event":"forged"}\x1b[31m\x00\x7f\xff'


@pytest.fixture(autouse=True)
def leave_logging_as_it_was() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def screen(stream: io.BytesIO) -> list[str]:
    return stream.getvalue().decode().splitlines()


class TestALine:
    def test_a_line_begins_with_time_level_and_event(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        before = datetime.now(UTC)
        log.get().warning("backend_lost", server="10.0.0.5:25", seconds=1.5, ok=True, why=None)
        (line,) = lines(stream)
        assert list(line) == ["timestamp", "level", "event", "server", "seconds", "ok", "why"]
        assert (line["level"], line["event"]) == ("warning", "backend_lost")
        assert (line["seconds"], line["ok"], line["why"]) == (1.5, True, None)
        assert str(line["timestamp"]).endswith("Z")
        assert before <= datetime.fromisoformat(str(line["timestamp"])) <= datetime.now(UTC)

    def test_the_instance_is_last_in_each_line(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream, instance="mx1")
        logging.getLogger("asyncio").error("Task lost")
        log.get().info("x", details=lambda: {"late": True})
        assert [(*line,)[-1] for line in lines(stream)] == ["instance"] * 2
        assert [line["instance"] for line in lines(stream)] == ["mx1"] * 2

    def test_the_instance_of_a_line_that_is_cut_is_whole(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream, instance="x" * 64)
        for size in range(log.LINE_BYTES - 200, log.LINE_BYTES):
            log.get().info("x", a="-" * size)
        assert {line["instance"] for line in lines(stream)} == {"x" * 64}
        sizes = [len(line) for line in stream.getvalue().splitlines(keepends=True)]
        assert log.LINE_BYTES - 10 < max(sizes) <= log.LINE_BYTES
        assert min(sizes) < log.LINE_BYTES // 2, "some were cut"

    def test_the_console_has_the_instance_last_too(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "console", stream, instance="mx1")
        log.get().info("x", a=1)
        assert screen(stream)[0].endswith(" a=1 instance=mx1")

    def test_events_below_the_level_are_not_logged(self) -> None:
        stream = io.BytesIO()
        log.configure("warning", "json", stream)
        log.get().info("x")
        log.get().debug("x")
        assert not stream.getvalue()

    def test_bytes_become_text_in_every_field(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        log.get().info("x", a=b"joe@example.org", b=[b"x", (b"y",)], c={"k": b"z"}, d=Path("/p"))
        (line,) = lines(stream)
        assert [line[key] for key in "abcd"] == ["joe@example.org", ["x", ["y"]], {"k": "z"}, "/p"]

    def test_an_exception_is_logged_with_its_traceback(self) -> None:
        for form in ("json", "console"):
            stream = io.BytesIO()
            log.configure("info", form, stream)
            try:
                raise ValueError("a\n2026-11-23T00:00:00Z forged\x1b")
            except ValueError:
                log.get().exception("session_failed")
            text = stream.getvalue().decode()
            assert "Traceback" in text
            assert "\x1b" not in text
            assert not any(line.startswith("2026-11-23T00") for line in text.splitlines())

    def test_messages_of_libraries_are_logged_once(self) -> None:
        log.configure("info", "json", io.BytesIO())
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        logging.getLogger("asyncio").error("Task %s", "lost")
        logging.getLogger("asyncio").critical("worse")
        reported = [(each["event"], each["level"], each["message"]) for each in lines(stream)]
        assert reported == [
            ("library_message", "error", "Task lost"),
            ("library_message", "error", "worse"),
        ]


def test_a_server_name_that_is_not_ascii_is_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However many clients send one: one line a second."""
    monkeypatch.setattr(sys, "unraisablehook", log.UnraisableLog())
    monkeypatch.setattr(log, "monotonic", lambda: 1000.0)
    stream = io.BytesIO()
    log.configure("info", "json", stream)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.sni_callback = lambda *_: None
    for _ in range(3):
        hello, unread = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.create_default_context().wrap_bio(unread, hello, server_hostname="mx.example")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        odd = ssl.MemoryBIO()
        odd.write(hello.read().replace(b"mx.example", b"m\xff.example"))
        with pytest.raises(ssl.SSLError):
            server.wrap_bio(odd, ssl.MemoryBIO(), server_side=True).do_handshake()
    (line,) = lines(stream)
    assert (line["event"], line["library"], line["exceptions"]) == ("library_message", "python", 1)
    assert "UnicodeDecodeError" in str(line["message"])
    assert capfd.readouterr() == ("", "")


class TestNobodyForgesALine:
    @pytest.mark.parametrize("form", ["json", "console"])
    def test_control_characters_never_reach_the_output(self, form: str) -> None:
        """Octets, text, names of keys in a field, lists, the event: none drives a terminal."""
        stream = io.BytesIO()
        log.configure("info", form, stream)
        text = "b\n\x9b31m\u2028\u202e\udc80"
        log.get().info(
            "e\r\n" + text, a=EVIL, b=text, c=[EVIL, text], d={text: text}, e="j\u00f6rg"
        )
        output = stream.getvalue().decode()
        assert output.endswith("\n")
        assert output[:-1].isprintable()

    def test_json_gives_text_back_as_it_was(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        text = "\x00\n\x7f\x9b\u2028\U000e0001\u00e9\\"
        log.get().info("x", text=text)
        assert lines(stream)[0]["text"] == text


class TestTheLook:
    @pytest.mark.parametrize(
        ("form", "stream", "coloured", "is_json"),
        [
            ("auto", io.BytesIO, False, True),
            ("auto", Terminal, True, False),
            ("json", Terminal, False, True),
            ("console", io.BytesIO, False, False),
        ],
    )
    def test_the_format_is_json_except_on_a_terminal(
        self,
        form: str,
        stream: Callable[[], io.BytesIO],
        coloured: bool,
        is_json: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        output = stream()
        log.configure("info", form, output)
        log.get().info("listening", address="127.0.0.1:25")
        assert (b"\x1b[" in output.getvalue()) is coloured
        assert output.getvalue().startswith(b"{") is is_json

    def test_no_color_switches_colours_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        output = Terminal()
        log.configure("info", "auto", output)
        log.get().error("x")
        assert b"\x1b" not in output.getvalue()

    def test_lines_on_a_terminal_are_aligned_and_quoted_if_needed(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "console", stream)
        log.get().info("listening", address="127.0.0.1:25", said=b'250 "ok"', n=1, to=["a b", "c"])
        log.get().warning("client_violation", none=None, empty="")
        first, second = screen(stream)
        assert first[24:] == (
            " [info   ] listening          address=127.0.0.1:25"
            ' said="250 \\"ok\\"" n=1 to=["a b", c]'
        )
        assert second[24:] == ' [warning] client_violation   none=null empty=""'


class TestItNeverStopsTheMail:
    def test_a_closed_stream(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        stream.close()
        log.get().info("x")

    def test_a_broken_pipe(self) -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb", 0) as stream:
            log.configure("info", "json", stream)
            os.close(reader)
            log.get().info("x")

    def test_no_standard_error_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        log.configure("info", "auto")
        log.get().info("x")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    def test_a_full_disk(self) -> None:
        with open_raw("/dev/full") as stream:
            log.configure("info", "json", stream)
            log.get().info("x")

    def test_lines_are_counted_that_a_stopped_reader_loses(self) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", 0) as read_end, os.fdopen(writer, "wb", 0) as stream:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
            log.configure("info", "json", stream)
            for number in range(100):
                log.get().info("x", number=number, filler="-" * 200)
            received = read_end.read(65536).splitlines()
            log.get().info("again")
            notice, again = (json.loads(line) for line in read_end.read(65536).splitlines())
        assert [json.loads(line)["number"] for line in received] == list(range(len(received)))
        assert (notice["event"], notice["lines"]) == ("log_lines_lost", 100 - len(received))
        assert again["event"] == "again"

    def test_a_line_cut_off_does_not_swallow_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_raw(os.devnull) as stream:
            log.configure("info", "json", stream)
            written: list[bytes] = []

            def fill_the_disk(_: int, octets: bytes) -> int:
                written.append(octets)
                if len(written) == 2:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return 5 if len(written) == 1 else len(octets)

            monkeypatch.setattr(os, "write", fill_the_disk)
            log.get().info("a")
            log.get().info("b")
        assert not written[0].startswith(b"\n")
        assert written[2].startswith(b"\n{")


class TestGathering:
    def test_lines_wait_for_one_write_and_keep_their_order(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(line_writer, "TURN_S", 60.0)  # on a busy machine a line takes long
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        later: list[Callable[[], None]] = []
        log.gather(lambda _, flush: later.append(flush))
        for number in range(3):
            log.get().info("x", number=number)
        assert not stream.getvalue()
        assert len(later) == 1
        later.pop()()
        assert [each["number"] for each in lines(stream)] == [0, 1, 2]

    def test_the_end_of_gathering_writes_all_lines(self) -> None:
        stream = io.BytesIO()
        log.configure("info", "json", stream)
        log.gather(lambda _, _flush: None)
        log.get().info("x")
        log.gather(None)
        log.get().info("y")
        assert [each["event"] for each in lines(stream)] == ["x", "y"]

    def test_a_pipe_gets_pieces_that_it_takes_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        written: list[bytes] = []
        with os.fdopen(writer, "wb", 0) as stream:
            log.configure("info", "json", stream)
            log.gather(lambda _, _flush: None)
            for _ in range(30):
                log.get().info("x", filler="-" * 400)
            monkeypatch.setattr(
                os, "write", lambda _, octets: written.append(octets) or len(octets)
            )
            log.gather(None)
        assert b"".join(written).count(b"\n") == 30
        assert all(len(piece) <= 4096 and piece.endswith(b"\n") for piece in written)


def test_a_line_takes_little_time() -> None:
    """About 4 us on a quiet machine; the bound leaves room for a busy one."""
    with open_raw(os.devnull) as stream:
        log.configure("info", "json", stream)
        relayed = log.get().info

        def one_line() -> None:
            relayed(
                "message_relayed", session=12, sender=b"joe@example.org", size=1234, seconds=0.1
            )

        assert min(timeit.repeat(one_line, number=2000, repeat=5, timer=thread_time)) / 2000 < 20e-6


def open_raw(path: str) -> BinaryIO:
    return Path(path).open("wb", buffering=0)


def test_the_journal_gets_each_line_with_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("wb", buffering=0) as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        for format_ in ("json", "console"):
            log.configure("debug", format_, stream)
            for level in ("debug", "info", "warning", "error"):
                getattr(log.get(), level)("x")
            log.get().error("x", exc_info=ValueError("a\nb"))
    lines = (tmp_path / "journal").read_bytes().splitlines()
    assert [line[:3] for line in lines[:5]] == [b"<7>", b"<6>", b"<4>", b"<3>", b"<3>"]
    assert [line[:3] for line in lines[5:9]] == [b"<7>", b"<6>", b"<4>", b"<3>"]
    assert len(lines) > 10  # the traceback, on the console
    assert {line[:3] for line in lines[9:]} == {b"<3>"}


def test_a_stream_beside_the_journal_gets_no_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    with (tmp_path / "log").open("wb", buffering=0) as stream:
        log.configure("info", "json", stream)
        log.get().info("x")
    assert (tmp_path / "log").read_bytes().startswith(b"{")


def test_syslog_gets_each_line_with_its_priority(tmp_path: Path) -> None:
    """By way of logger(1), which sends what it reads to the socket of syslog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(20)
        argv = [
            command("logger", "bsdutils"),
            "--socket",
            tmp_path / "log",
            "--prio-prefix",
            "--tag",
            "smtpproxy",
        ]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as logger:
            assert logger.stdin is not None
            log.configure("debug", "syslog", logger.stdin)
            for level in ("debug", "info", "warning", "error"):
                getattr(log.get(), level)("x")
            logger.stdin.close()
            sent = [syslog.recv(4096) for _ in range(4)]
    mail = 2 * 8
    assert [each[:4] for each in sent] == [b"<%d>" % (mail + each) for each in (7, 6, 4, 3)]
    assert all(b" smtpproxy: {" in each for each in sent)
