"""Captures of several sessions, in one file or while they go on, as Wireshark reads them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.trace import live_output, pcapng, reader, trace_commands
from smtpproxy.trace.reader import files_of
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.records import (
    HEADER,
    Closed,
    Connected,
    Exchanged,
    Opened,
    Record,
    encode,
)
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Later, Watched
from tests.support.processes import Process, eventually
from tests.support.programs import command

CHECKS = ("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
WRONG = "_ws.expert.severity >= 0x600000"
FIELDS = ("-T", "fields", "-e", "tcp.stream", "-e", "smtp.req.command")


def export(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["trace", "export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def tshark(octets: bytes, *arguments: str) -> list[str]:
    """Return the lines that tshark prints of a capture."""
    argv = [command("tshark"), "-r", "-", *CHECKS, *arguments]
    done = subprocess.run(argv, input=octets, capture_output=True, timeout=60, check=True)
    return done.stdout.decode().splitlines()


def commands(octets: bytes) -> dict[str, list[str]]:
    """Return the commands of each TCP stream, as tshark finds them."""
    found: dict[str, list[str]] = {}
    for line in tshark(octets, "-Y", "smtp.req.command", *FIELDS):
        stream, verbs = line.split("\t")
        found.setdefault(stream, []).append(verbs)
    return found


def connected(
    session: str,
    at: float,
    client: str = "192.0.2.1:4711",
    listener: str = "192.0.2.9:25",
    proxy: str = "10.0.0.1:33333",
) -> Connected:
    return Connected(session, at, "mx", client, listener, proxy, "10.0.0.5:25")


def dialogue(number: int, at: float) -> list[Record]:
    """Return the records of a session in which a message is relayed in one group."""
    name, client = f"s-{number}", f"192.0.2.{number}:4711"

    def exchange(verb: str, line: str, code: int, framed: float, took: float = 0.1) -> Exchanged:
        sent = framed + took
        times = at + framed, at + sent, at + sent + 0.1, at + (framed + 1)
        return Exchanged(name, verb, line, code, f"{code} {verb.lower()}", *times)

    greeting = Exchanged(name, "greeting", "", 220, "220 mx", at + 0.1, 0.0, at + 0.2, at + 0.3)
    return [
        Opened(name, at, "smtp", client.partition(":")[0], 4711),
        connected(name, at + 0.1, client, proxy=f"10.0.0.1:{33333 + number}"),
        greeting,
        exchange("EHLO", "EHLO x", 250, 1.0),
        exchange("MAIL", "MAIL FROM:<a@x>", 250, 3.0),
        exchange("RCPT", "RCPT TO:<b@y>", 250, 3.0, 0.3),
        exchange("DATA", "DATA", 354, 3.0, 0.6),
        exchange("end_of_data", "", 250, 5.0),
        exchange("QUIT", "QUIT", 221, 7.0),
        Closed(
            *(name, at + 8.0, at, "smtp", client.partition(":")[0], 4711, "10.0.0.5:25", "quit"),
            *(8.0, 5, 2, 1, 80, 90, [], [], []),
        ),
    ]


def said(octets: bytes) -> dict[str, str]:
    """Return what each end of each TCP stream sends, in hexadecimal."""
    found: dict[str, str] = {}
    fields = ["-e", "tcp.stream", "-e", "ip.src", "-e", "tcp.payload"]
    for line in tshark(octets, "-Y", "tcp.payload", "-T", "fields", *fields):
        stream, source, payload = line.split("\t")
        end = f"{stream} {source}"
        found[end] = found.get(end, "") + payload
    return found


CLIENT = ["EHLO", "MAIL,RCPT,DATA", "QUIT"]
MTA = ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


class TestOneFile:
    @pytest.mark.parametrize(
        ("options", "sessions"),
        [
            (["--since", "2020-01-01"], 3),
            (["--code", "550"], 1),
            (["--address", "b@y", "--last", "2"], 2),
        ],
    )
    def test_the_sessions_that_options_choose(
        self, recorded: Path, tmp_path: Path, options: list[str], sessions: int
    ) -> None:
        file = tmp_path / "some.pcapng"
        result = export("-d", recorded, *options, "--pcapng", file)
        assert result.exit_code == 0, result.stderr
        assert sorted(commands(file.read_bytes()).values()) == sorted([CLIENT, MTA] * sessions)

    def test_to_standard_output(self, recorded: Path) -> None:
        result = export("-d", recorded, "--code", "550", "--pcapng", "-")
        assert (result.exit_code, result.stderr) == (0, "1 session\n")
        assert len(commands(result.stdout_bytes)) == 2

    def test_packets_are_in_order_of_time(self, tmp_path: Path) -> None:
        """Whatever file each session is in: each worker has its own."""
        for number, at in enumerate((10.5, 10.0, 10.25)):
            lines = [encode(each) + b"\n" for each in dialogue(number, at)]
            (tmp_path / f"trace-{number}.jsonl").write_bytes(HEADER + b"".join(lines))
        octets = export("-d", tmp_path, "--last", "9", "--pcapng", "-").stdout_bytes
        times = tshark(octets, "-T", "fields", "-e", "frame.time_relative")
        assert len(times) > 60
        assert times == sorted(times, key=float)
        assert sorted(commands(octets).values()) == sorted([CLIENT, MTA] * 3)
        assert not tshark(octets, "-Y", WRONG)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give SESSION, or choose several"),
            (["s-1", "--code", "550"], "give SESSION, or choose several"),
            (["--code", "550", "--html", "x"], "--html is for one SESSION"),
            (["--code", "421"], "no session matches in"),
        ],
    )
    def test_what_cannot_be_exported(
        self, recorded: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        result = export("-d", recorded, "--pcapng", tmp_path / "x", *arguments)
        assert result.exit_code in (1, 2)
        assert message in result.stderr
        assert not (tmp_path / "x").exists()

    def test_what_is_too_much_is_left_out_and_counted(
        self, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trace_commands, "EXPORTED_BYTES", 2000)
        result = export("-d", recorded, "--last", "3", "--pcapng", tmp_path / "x")
        assert result.exit_code == 3
        assert re.search(r"\d+ records left out: more than 64 MiB", result.stderr)
        assert commands((tmp_path / "x").read_bytes())

    def test_the_latest_are_exported_if_too_many_are_chosen(
        self, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trace_commands, "CHOSEN_SESSIONS", 2)
        result = export("-d", recorded, "--address", "192.0.2.1", "--pcapng", tmp_path / "x")
        assert "only the latest 2 of these sessions count" in result.stderr
        octets = (tmp_path / "x").read_bytes()
        assert sorted(commands(octets).values()) == sorted([CLIENT, MTA] * 2)

    def test_a_terminal_gets_no_capture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal:
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(live_output.sys, "stdout", Terminal())
        with pytest.raises(live_output.click.UsageError, match="wireshark -k -i -"):
            live_output.LiveCapture("-")


class TestParts:
    """A capture whose records come one by one."""

    @pytest.mark.parametrize(
        "size", [1, *(pytest.param(size, marks=pytest.mark.long) for size in (3, 7))]
    )
    def test_each_side_says_the_same_as_in_the_whole(self, size: int) -> None:
        records = [*dialogue(0, 10.0), *dialogue(1, 20.0)]
        whole, parts = pcapng.Capture(), pcapng.Capture()
        at_once = pcapng.head() + whole.packets(records)
        in_parts = pcapng.head()
        for begin in range(0, len(records), size):
            in_parts += parts.packets(records[begin : begin + size])
        assert said(in_parts) == said(at_once)
        assert len(said(at_once)) == 8
        assert not tshark(in_parts, "-Y", WRONG)

    def test_a_session_without_its_beginning_is_left_out(self) -> None:
        late, whole = dialogue(0, 10.0)[3:], dialogue(1, 10.0)
        assert pcapng.Capture().packets(late) == b""
        made = pcapng.Capture().packets([*late, *whole])
        assert commands(pcapng.head() + made) == {"0": CLIENT, "1": MTA}

    def test_sessions_of_the_same_addresses_are_several(self) -> None:
        """As those of clients of a Unix socket, and of ports that are used again."""
        made = pcapng.Capture()
        octets = pcapng.head()
        for number, client in enumerate(["unix", "unix", "192.0.2.1:4711", "192.0.2.1:4711"]):
            name = f"s-{number}"
            octets += made.packets(
                [
                    Opened(name, 1.0 + number, "smtp"),
                    Connected(
                        name, 2.0 + number, "mx", client, "unix", "10.0.0.1:5", "10.0.0.5:25"
                    ),
                    Exchanged(
                        *(name, "EHLO", "EHLO x", 250, "250 mx"),
                        *(3.0 + number, 4.0 + number, 5.0 + number, 6.0 + number),
                    ),
                ]
            )
        assert commands(octets) == {str(number): ["EHLO"] for number in range(8)}

    def test_each_server_that_is_tried_has_its_connection(self) -> None:
        greeting = Exchanged("s", "greeting", "", 220, "220 mx", 3.0, 0.0, 4.0, 0.0)
        hello = Exchanged("s", "EHLO", "EHLO x", 250, "250 mx", 7.0, 8.0, 9.0, 9.5)
        both = [
            Connected(
                "s", at, "mx", "192.0.2.1:4", "192.0.2.9:25", f"10.0.0.1:{at:.0f}", "10.0.0.5:25"
            )
            for at in (2.0, 5.0)
        ]
        made = pcapng.Capture().packets(
            [Opened("s", 1.0, "smtp"), both[0], greeting, both[1], hello]
        )
        assert commands(pcapng.head() + made) == {"0": ["EHLO"], "2": ["EHLO"]}
        assert not tshark(pcapng.head() + made, "-Y", WRONG)

    def test_the_sessions_that_never_end_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pcapng, "SESSIONS", 3)
        made = pcapng.Capture()
        for number in range(10):
            name = f"s-{number}"
            made.packets([Opened(name, 1.0, "smtp"), connected(name, 2.0)])
            made.packets([Opened(f"without a server {number}", 1.0, "smtp")])
        assert (len(made._legs), len(made._opened)) == (3, 3)

    def test_filler_of_a_session_is_bounded(self) -> None:
        made = pcapng.Capture(filler=1000)
        made.packets(
            [
                Opened("s", 1.0, "smtp"),
                Connected(
                    "s", 2.0, "mx", "192.0.2.1:4", "192.0.2.9:25", "10.0.0.1:5", "10.0.0.5:25"
                ),
            ]
        )
        chunk = Exchanged(
            "s", "BDAT", "BDAT 600", 250, "250 ok", 3.0, 4.0, 5.0, 6.0, content_bytes=600
        )
        sizes = [len(made.packets([chunk])) for _ in range(3)]
        assert sizes[0] > sizes[1] > sizes[2]
        assert 2 * 600 < sizes[0] < 2 * 600 + 500
        assert sizes[2] < 500


@contextmanager
def wireshark(directory: Path, *source: str | Path) -> Iterator[tuple[Process, Process]]:
    """Run a command and tshark, which reads what it prints while it does."""
    argv = [command("tshark"), "-l", "-i", "-", *CHECKS, "-Y", f"smtp.req.command or {WRONG}"]
    fields = [*FIELDS, "-e", "_ws.expert.message"]
    pipe = directory / "pipe"
    script = f'mkfifo {pipe}; exec "$@" < {pipe}'
    with Process(["sh", "-c", script, "sh", *argv, *fields], directory / "shark") as shark:
        eventually(lambda: pipe.exists() or None, "the pipe")
        to_pipe = f'exec "$@" > {pipe}'
        smtpproxy = [sys.executable, "-m", "smtpproxy", *map(str, source)]
        with Process(["sh", "-c", to_pipe, "sh", *smtpproxy], directory / "source") as made:
            yield made, shark


def read(shark: Process) -> list[list[str]]:
    """Return the stream and the commands of each line of `wireshark`."""
    return [
        line.split("\t")[:2] for line in shark.printed().splitlines() if re.match(r"\d+\t", line)
    ]


def test_wireshark_shows_exchanges_while_they_are_recorded(tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    trace = TraceRecorder(RotatingFiles(directory, 0, 1 << 20, 5), Later())
    before = Watched(trace)  # is left out, as its beginning was recorded before
    before.sends("EHLO before")
    before.says("250 mx")
    trace.writer.flush()
    eventually(lambda: (directory.exists() and files_of(directory)) or None, "the file")

    source = ("trace", "follow", "-d", directory, "--pcapng", "-")
    with wireshark(tmp_path, *source) as (follow, shark):
        eventually(lambda: "Capturing" in shark.printed() or None, "Wireshark")
        session = Watched(trace, client="192.0.2.2:4711")
        session.sends("EHLO x")
        session.says("250-mx\r\n250 SIZE")
        trace.writer.flush()
        expected = [["0", "EHLO"], ["1", "EHLO"]]
        eventually(lambda: read(shark) == expected or None, "EHLO, while the session is open")
        before.relay("text")
        session.relay("text")
        trace.writer.flush()
        expected += [["0", "MAIL,RCPT,DATA"], *(["1", verb] for verb in ("MAIL", "RCPT", "DATA"))]
        eventually(lambda: read(shark) == expected or None, "MAIL in the client's group")
        shark.terminate()
        assert follow.wait() == 0, "it ends although nothing more is recorded"
        assert follow.printed() == ""
    trace.close()


def test_follow_ends_when_its_reader_does(tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    directory.mkdir()
    file = directory / "trace-1.jsonl"
    file.write_bytes(HEADER)
    argv = [sys.executable, "-m", "smtpproxy", "trace", "follow", "-d", str(directory)]
    script = f'{" ".join(argv)} 2>&1 | head -n 1; echo "${{PIPESTATUS[0]}}"'
    with Process(["bash", "-c", script], tmp_path / "printed") as shell:
        exchange = Exchanged("s-1", "EHLO", "EHLO x", 250, "250 mx", 1.0, 1.0, 1.0, 1.0)

        def printed() -> bool | None:
            with file.open("ab") as appended:
                appended.write(encode(exchange) + b"\n")
            return bool(shell.printed()) or None

        eventually(printed, "the first line")
        assert shell.wait() == 0
        line, code = shell.printed().splitlines()
        assert "EHLO x  250 mx" in line
        assert code == "0"


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["show"], ["stats"], ["export", "--pcapng", "-"]],
    ids=" ".join,
)
def test_a_reader_that_has_left_is_no_error(recorded: Path, arguments: list[str]) -> None:
    if arguments[0] in ("show", "export"):
        (first, *_) = reader.TraceReader(recorded).closed_sessions()
        arguments = [*arguments, first[0].session]
    output, nobody = os.pipe()
    os.close(output)
    argv = [sys.executable, "-m", "smtpproxy", "trace", *arguments, "-d", str(recorded)]
    with os.fdopen(nobody, "wb") as stdout:
        done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stderr in ("", "3 sessions\n")
