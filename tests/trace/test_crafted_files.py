"""Trace files of a stranger: whatever is in them, each command ends soon, with a clear line."""

import asyncio
import base64
import gzip
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from smtpproxy.cli import main
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.timeline.drawing import Row, Timeline
from smtpproxy.timeline.labels import Label
from smtpproxy.trace import reader as reader_module
from smtpproxy.trace import replay as replay_module
from smtpproxy.trace import trace_commands
from smtpproxy.trace.reader import TraceReader
from smtpproxy.trace.records import HEADER
from tests.support.hostile_text import check_shown

OPENED: dict[str, Any] = {"what": "opened", "session": "s1", "at": 1.0, "listener": "smtp"}
CONNECTED: dict[str, Any] = {
    "what": "connected",
    "session": "s1",
    "at": 1.0,
    "server": "10.0.0.5:25",
    "client_address": "192.0.2.1:4711",
    "listener_address": "192.0.2.9:25",
    "proxy_address": "10.0.0.1:33333",
    "server_address": "10.0.0.5:25",
}
EXCHANGE: dict[str, Any] = {
    "what": "exchange",
    "session": "s1",
    "verb": "NOOP",
    "command": "NOOP",
    "code": 250,
    "reply": "250 ok",
    "framed": 2.0,
    "sent": 2.1,
    "replied": 2.2,
    "flushed": 2.3,
}
CLOSED: dict[str, Any] = {
    "what": "closed",
    "session": "s1",
    "at": 3.0,
    "opened": 1.0,
    "listener": "smtp",
    "client_ip": "192.0.2.1",
    "client_port": 4711,
    "server": "10.0.0.5:25",
    "reason": "quit",
    "duration_s": 2.0,
    "commands": 1,
    "round_trips_saved": 0,
    "messages": 0,
    "bytes_from_client": 6,
    "bytes_from_backend": 8,
    "codes": [],
    "violations": [],
    "transactions": [],
}
COMMANDS = ("list", "stats", "show", "html", "pcapng", "replay")


def lines(*records: dict[str, Any]) -> bytes:
    """Return a whole file of these records."""
    return HEADER + b"".join(msgspec.json.encode(each) + b"\n" for each in records)


def run(command: str, path: Path) -> Result:
    """Run a command on a session of a file or a directory, and check what it prints."""
    arguments = [command, "-d", str(path)]
    if command in ("html", "pcapng"):
        arguments = ["export", "-d", str(path), f"--{command}", str(path.parent / "exported")]
    if command == "replay":
        arguments += ["--to", "127.0.0.1:1"]
    if command not in ("list", "stats"):
        arguments.append("s1")
    result = CliRunner().invoke(main, ["trace", *arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    for shown in (result.stdout, result.stderr):
        check_shown(shown)
    return result


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "trace"
    directory.mkdir()
    return directory / "trace-1.jsonl"


class TestValues:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        ("record", "change"),
        [
            (OPENED, {"at": 1e300}),
            (OPENED, {"at": -1e15}),
            (OPENED, {"client_port": 65536}),
            (CONNECTED, {"at": 1e12}),
            (EXCHANGE, {"framed": -5.0}),
            (EXCHANGE, {"sent": 1e300}),
            (EXCHANGE, {"content_bytes": 10**30}),
            (EXCHANGE, {"content_bytes": -1}),
            (EXCHANGE, {"code": 10**6}),
            (EXCHANGE, {"command": "\\=not base64"}),
            (EXCHANGE, {"verb": "x" * 5000}),
            (EXCHANGE, {"steps": [{"command": "", "reply": "", "sent": -1}]}),
            (EXCHANGE, {"violation": {"side": 1}}),
            (EXCHANGE, {"what": "\x1b]0;title\x07"}),
            (EXCHANGE, {"session": None}),
            (CLOSED, {"opened": 1e300}),
            (CLOSED, {"duration_s": 1e300}),
            (CLOSED, {"codes": [250] * 5000}),
            (CLOSED, {"transactions": [{}]}),
        ],
    )
    def test_a_record_beyond_its_bounds_is_named_and_the_others_are_used(
        self, file: Path, command: str, record: dict[str, Any], change: dict[str, Any]
    ) -> None:
        records = [OPENED, CONNECTED, EXCHANGE, CLOSED]
        bad = records.index(record)
        file.write_bytes(lines(*records[:bad], record | change, *records[bad:]))
        result = run(command, file.parent)
        assert result.exit_code in ({3, 0} if command in ("list", "stats") else {1, 3})
        if command == "show" or (command == "list" and record is CLOSED):
            assert f"{file}, line {bad + 2}: " in result.stderr.replace("\n", "")
            assert "1 record or file could not be read" in result.stderr

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        "junk",
        [
            b"{",
            b"[" * 1_000_000,
            b'{"what":"closed","session":"s1","at":' + b"[" * 100_000 + b"}",
            b'{"what":"exchange","session":"s1","verb":"\xff"}',
            b'{"what":"exchange","session":"s1","verb":"\\ud800"}',
            b'{"what":"exchange","session":"s1","verb":"NOOP","code":' + b"9" * 5000 + b"}",
            b"\0" * 100,
            b"",
            os.urandom(1000).replace(b"\n", b""),
            b'\x1b[2J{"what":"closed"}',
        ],
        ids=range(10),
    )
    def test_a_line_that_is_no_record_is_named(self, file: Path, command: str, junk: bytes) -> None:
        file.write_bytes(lines(OPENED, CONNECTED) + junk + b"\n" + lines(EXCHANGE, CLOSED))
        result = run(command, file.parent)
        if command == "stats" and not junk:
            assert result.exit_code == 0  # an empty line is no problem to it
            return
        assert result.exit_code == (1 if command == "replay" else 3)
        if command != "replay":
            assert f"{file}, line 4: " in result.stderr.replace("\n", "")

    def test_all_are_counted_and_the_first_ones_named(self, file: Path) -> None:
        file.write_bytes(lines(CLOSED) + b"x\n" * 100_000 + b'{"what":"closed"')
        result = run("list", file.parent)
        assert "100,001 records or files could not be read" in result.stderr
        assert [line for line in range(1, 20) if f"line {line}:" in result.stderr] == [
            3,
            4,
            5,
            6,
            7,
        ]
        assert "192.0.2.1:4711" in result.stdout

    @pytest.mark.parametrize("block", [1, 2, 7, 64, 100])
    def test_how_a_file_is_cut_into_blocks_does_not_matter(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, block: int
    ) -> None:
        monkeypatch.setattr(reader_module, "BLOCK_BYTES", block)
        file.write_bytes(lines(OPENED, EXCHANGE) + b"bad\n\n" + lines(EXCHANGE, CLOSED))
        reader = TraceReader(file.parent)
        session = reader.session("s1")
        assert [each["what"] for each in msgspec.to_builtins(session.records)] == [
            *("opened", "exchange", "exchange", "closed")
        ]
        named = [each.removeprefix(f"{file}, ")[:7] for each in reader.problems.first]
        assert named == ["line 4:", "line 5:"]


class TestOddFiles:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (os.mkfifo, "it is no regular file"),
            (os.mkdir, "it is no regular file"),
            (lambda path: path.symlink_to(path.parent), "it is no regular file"),
            (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
            (lambda path: path.symlink_to("/nowhere"), "No such file or directory"),
            (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
            (lambda path: path.symlink_to("/proc/self/mem"), ""),
            (
                lambda path: path.write_bytes(b'{"what":"closed"}\n'),
                "it is no trace file: its first line has no version",
            ),
            (
                lambda path: path.write_bytes(os.urandom(100_000)),
                "it is no trace file: its first line has no version",
            ),
            (
                lambda path: path.write_bytes(HEADER.replace(b":1}", b":2}") + b"x\n"),
                "its records have version 2, and this smtpproxy reads version 1",
            ),
            (
                lambda path: path.write_bytes(gzip.compress(lines(CLOSED) + b"\0" * 10_000_000)),
                "it is compressed: decompress it first",
            ),
        ],
        ids=range(11),
    )
    def test_a_file_that_cannot_be_a_trace_is_named_and_the_others_are_read(
        self, file: Path, command: str, make: Callable[[Path], object], why: str
    ) -> None:
        make(file)
        alone = run(command, file.parent)
        assert f"{file}: {why}" in alone.stderr or why == ""
        assert alone.exit_code in ({0, 1} if why == "" else {1})
        (file.parent / "trace-2.jsonl").write_bytes(lines(OPENED, CONNECTED, EXCHANGE, CLOSED))
        beside = run(command, file.parent)
        if command != "replay" and why:
            assert beside.exit_code == 3
            assert f"{file}: {why}" in beside.stderr

    @pytest.mark.parametrize("name", ["trace-1.jsonl.gz", "trace-1.jsonl.zst"])
    def test_a_compressed_file_is_not_passed_over_in_silence(self, file: Path, name: str) -> None:
        (file.parent / name).write_bytes(gzip.compress(lines(CLOSED)))
        assert "it is compressed" in run("list", file.parent).stderr

    def test_a_file_that_cannot_be_read_is_named(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        file.write_bytes(lines(CLOSED))
        monkeypatch.setattr(reader_module.os, "open", refuse)
        result = run("list", file.parent)
        assert (result.exit_code, f"{file}: Permission denied" in result.stderr) == (1, True)

    @pytest.mark.parametrize("version", [b"2", b"0", b'"1"', b"null"])
    def test_another_version_in_the_middle_ends_the_reading(
        self, file: Path, version: bytes
    ) -> None:
        """As where files were put together."""
        header = HEADER.replace(b":1}", b":" + version + b"}")
        file.write_bytes(lines(CLOSED) + header + lines(CLOSED))
        result = run("list", file.parent)
        assert result.exit_code in (1, 3)
        assert result.stdout.count("192.0.2.1:4711") in (1, 2)

    def test_files_put_together_are_read(self, file: Path) -> None:
        file.write_bytes(lines(CLOSED) * 3)
        result = run("list", file.parent)
        assert (result.exit_code, result.stdout.count("192.0.2.1")) == (0, 3)

    @pytest.mark.parametrize("kept", [1, 30, -1, -30])
    def test_a_last_line_that_is_cut_short_is_named(self, file: Path, kept: int) -> None:
        last = msgspec.json.encode(CLOSED)
        file.write_bytes(lines(CLOSED) + last[:kept])
        result = run("list", file.parent)
        assert (result.exit_code, result.stdout.count("192.0.2.1")) == (3, 1)
        assert f"{file}, line 3: " in result.stderr.replace("\n", "")

    def test_a_last_line_without_its_end_is_read(self, file: Path) -> None:
        file.write_bytes(lines(CLOSED, CLOSED)[:-1])
        assert run("list", file.parent).stdout.count("192.0.2.1") == 2

    def test_a_file_that_grows_is_read_to_where_it_was(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader_module, "BLOCK_BYTES", 100)
        file.write_bytes(lines(CLOSED, CLOSED))

        def grow(_: int) -> None:
            with file.open("ab") as growing:
                growing.write(lines(CLOSED))

        reader = TraceReader(file.parent)
        reader.on_progress(grow)
        assert len(list(reader.closed_sessions())) == 2
        assert not reader.problems.count

    def test_a_file_that_is_cut_short_while_it_is_read_is_named(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader_module, "BLOCK_BYTES", 100)
        file.write_bytes(lines(*[CLOSED] * 10))
        reader = TraceReader(file.parent)
        reader.on_progress(lambda _: os.truncate(file, 10))
        assert len(list(reader.closed_sessions())) < 10
        assert reader.problems.first == [f"{file}: it was cut short while it was read"]

    def test_a_file_that_is_removed_meanwhile_was_the_oldest(self, file: Path) -> None:
        file.write_bytes(lines(CLOSED))
        reader = TraceReader(file.parent)
        file.unlink()
        assert not list(reader.closed_sessions())
        assert not reader.problems.count

    def test_a_directory_that_cannot_be_read_is_an_error(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(reader_module.os, "scandir", refuse)
        result = run("list", file.parent)
        assert (result.exit_code, "cannot read" in result.stderr) == (1, True)


class TestBounds:
    def test_a_line_without_an_end_takes_bounded_memory(self, file: Path) -> None:
        """5 GiB of nothing, and a record after it."""
        with file.open("wb") as sparse:
            sparse.write(lines(CLOSED))
            sparse.truncate(5 << 30)
            sparse.seek(0, os.SEEK_END)
            sparse.write(lines(CLOSED))
        done = limited("list", "-d", str(file))
        assert (done.returncode, done.stdout.count("192.0.2.1")) == (1, 1)
        assert "line 3 is longer than 32 MiB" in done.stderr

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("command", "octets"),
        [
            pytest.param("show", b"\xff\xf0\x9f\x98\x80\x00" * 8, id="show"),
            pytest.param("html", b"\x01\n" * 24, id="html", marks=pytest.mark.long),
            pytest.param("pcapng", b"\x7f" * 48, id="pcapng", marks=pytest.mark.long),
        ],
    )
    def test_a_session_takes_bounded_memory(self, file: Path, command: str, octets: bytes) -> None:
        content = "\\=" + base64.b64encode(octets * 100_000).decode()
        big = EXCHANGE | {"verb": "end_of_data", "command": "", "content": content}
        with file.open("wb") as written:
            written.write(lines(OPENED, CONNECTED))
            for _ in range(9):
                written.write(msgspec.json.encode(big) + b"\n")
            written.write(lines(CLOSED))
        arguments = [command] if command == "show" else ["export", f"--{command}", "/dev/null"]
        done = limited(*arguments, "-d", str(file), "s1")
        assert done.returncode == 3, done.stderr[-500:]
        assert "records of the session left out: it is too long" in done.stderr

    @pytest.mark.long
    def test_several_sessions_take_bounded_memory(self, file: Path) -> None:
        content = "\\=" + base64.b64encode(b"\x7f" * 4_800_000).decode()
        big = EXCHANGE | {"verb": "end_of_data", "command": "", "content": content}
        with file.open("wb") as written:
            written.write(HEADER)
            for number in range(12):
                for each in (OPENED, CONNECTED, big, CLOSED):
                    written.write(msgspec.json.encode(each | {"session": f"s{number}"}) + b"\n")
        done = limited("export", "--pcapng", "/dev/null", "-d", str(file), "--last", "99")
        assert done.returncode == 3, done.stderr[-500:]
        assert done.stderr.startswith(
            "12 sessions\nwrote /dev/null\nsmtpproxy: 2 records left out: more than 64 MiB: "
        )

    @pytest.mark.parametrize("verb", ["BDAT", "end_of_data"])
    def test_content_of_a_size_that_cannot_be_takes_no_memory(self, file: Path, verb: str) -> None:
        command = "BDAT 50000000000" if verb == "BDAT" else ""
        big = EXCHANGE | {"verb": verb, "command": command, "content_bytes": 50_000_000_000}
        file.write_bytes(lines(OPENED, CONNECTED, *[big] * 100, CLOSED))
        done = limited("export", "--pcapng", str(file.parent / "x"), "-d", str(file), "s1")
        assert done.returncode == 0, done.stderr[-500:]
        assert (file.parent / "x").stat().st_size < 200 << 20

    @pytest.mark.parametrize(
        "content",
        [
            {"verb": "BDAT", "command": "BDAT 50000000000"},
            {"verb": "end_of_data", "command": "", "content_bytes": 50_000_000_000},
        ],
        ids=["BDAT", "DATA"],
    )
    async def test_content_of_a_size_that_cannot_be_is_not_played(
        self, file: Path, content: dict[str, Any]
    ) -> None:
        big = EXCHANGE | content
        file.write_bytes(lines(OPENED, CONNECTED, EXCHANGE, big | {"framed": 2.5}, CLOSED))
        async with LegacyMTA() as mta:
            address = trace_commands.parse_server(mta.address)
            session = TraceReader(file).session("s1")
            result = await replay_module.replay(session, address, as_fast=True)
        assert result.stopped == "content of 50000000000 bytes is too long"
        assert [each.exchange.verb for each in result.played] == ["NOOP"]

    async def test_a_group_is_sent_in_one_write(self, file: Path) -> None:
        """Long content is not: it is sent in pieces."""
        content = {"verb": "end_of_data", "command": "", "content_bytes": 1_000_000}
        file.write_bytes(
            lines(OPENED, *[EXCHANGE] * 3, EXCHANGE | content | {"framed": 2.5}, CLOSED)
        )
        sink = Sink()
        reader = asyncio.StreamReader()
        reader.feed_data(b"250 ok\r\n" * 9)
        session = TraceReader(file).session("s1")
        await replay_module.play(session, reader, sink, as_fast=True)  # type: ignore[arg-type]
        assert sink.writes[0] == b"NOOP\r\n" * 3
        assert sum(map(len, sink.writes[1:])) == 1_000_003
        assert max(map(len, sink.writes)) < 200_000

    async def test_a_pause_of_years_is_cut_short(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replay_module, "REPLY_LIMIT_S", 0.2)
        later = [EXCHANGE | {"framed": 1e9}, EXCHANGE | {"framed": 1e9 + 0.1}]
        file.write_bytes(lines(OPENED, CONNECTED, EXCHANGE, *later, CLOSED))
        async with LegacyMTA() as mta:
            address = trace_commands.parse_server(mta.address)
            result = await replay_module.replay(TraceReader(file).session("s1"), address)
        assert len(result.played) == 3

    def test_a_list_keeps_the_latest_sessions(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trace_commands, "LISTED_BYTES", 2000)
        file.write_bytes(
            lines(*(CLOSED | {"session": f"s{number}", "opened": number} for number in range(50)))
        )
        result = run("list", file.parent)
        shown = [line.split()[2] for line in result.stdout.splitlines()[1:]]
        assert shown == [f"s{number}" for number in range(50 - len(shown), 50)]
        assert f"{50 - len(shown)} earlier sessions left out" in result.stderr
        assert "50 sessions" in result.stderr

    def test_a_page_has_a_bound(self, file: Path) -> None:
        file.write_bytes(lines(OPENED, CONNECTED, *[EXCHANGE] * 7000, CLOSED))
        assert run("html", file.parent).exit_code == 0
        page = (file.parent.parent / "exported").read_text()
        assert page.count('"what":"exchange"') == 5000
        assert '{"what":"gap","session":"s1","exchanges":2000}' in page

    def test_rows_that_alternate_are_left_out_in_time(self) -> None:
        """All in one group: the run was gone through again from each of its rows."""
        labels = [Label(verb, verb, "") for verb in ("NOOP", "RSET")]
        rows = [Row(0.0, to_mta=tuple(labels))]
        rows += [Row(1.0 + n, mta_side=True, to_mta=(labels[n % 2],)) for n in range(20_000)]
        assert len(Timeline(rows)._shown()) == len(rows)


def limited(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command with 1.5 GiB of memory."""
    return subprocess.run(
        [sys.executable, "-m", "smtpproxy", "trace", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29)),
    )


class Sink:
    """Takes what is sent, as a stream does."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, octets: bytes) -> None:
        self.writes.append(octets)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class TestSession:
    def test_its_whole_id_comes_before_those_that_begin_with_it(self, file: Path) -> None:
        file.write_bytes(lines(OPENED | {"session": "s12"}, OPENED))
        assert TraceReader(file).session("s1").id == "s1"
        with pytest.raises(ValueError, match=r"several sessions begin with s \(s1, s12\)"):
            TraceReader(file).session("s")

    def test_content_is_not_in_the_page(self, file: Path) -> None:
        secret = EXCHANGE | {"content": "SECRET", "content_received": "SECRET"}
        file.write_bytes(lines(OPENED, CONNECTED, secret, CLOSED))
        run("html", file.parent)
        assert "SECRET" not in (file.parent.parent / "exported").read_text()

    @pytest.mark.parametrize("command", ["show", "html"])
    def test_an_id_that_is_markup_is_text(self, file: Path, command: str) -> None:
        name = "s1</title><script>alert(1)</script>\x1b[2J"
        records = [each | {"session": name} for each in (OPENED, CONNECTED, EXCHANGE, CLOSED)]
        file.write_bytes(lines(*records))
        assert run(command, file.parent).exit_code == 0
        if command == "html":
            page = (file.parent.parent / "exported").read_text()
            assert page.count("<script") == 2
            assert "\x1b" not in page


class TestFollow:
    def test_a_file_that_is_cut_short_is_read_from_its_begin(self, file: Path) -> None:
        file.write_bytes(lines(OPENED, EXCHANGE, CLOSED))
        follower = trace_commands._Follower(file.parent)
        file.write_bytes(lines(OPENED))
        assert len(list(follower.new_records(b""))) == 1
        assert not list(follower.new_records(b""))

    def test_problems_are_reported_once(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(file)
        follower = trace_commands._Follower(file.parent)
        (file.parent / "trace-2.jsonl").write_bytes(lines(OPENED) + b"bad\n" + b"unfinished")
        for count in (1, 0, 0):
            assert len(list(follower.new_records(b""))) == count
        printed = capsys.readouterr().err
        assert printed.count("no regular file") == printed.count("line 3: ") == 1
        assert "unfinished" not in printed
        assert follower.problems.count == 2
