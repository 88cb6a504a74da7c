"""`smtpproxy trace`: what each command prints of recorded sessions."""

import asyncio
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from smtpproxy.cli import main
from smtpproxy.config.address import parse_server
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.trace import pcapng, records, terminal, trace_commands
from smtpproxy.trace.reader import RecordedSession, TraceReader, add, files_of
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.records import Closed, Exchanged, Gap, Transaction, decode
from smtpproxy.trace.replay import played_pieces, replay
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Later, Watched
from tests.support.programs import command


def run(*arguments: str | Path, columns: int = 120) -> Result:
    environment = {"COLUMNS": str(columns)}
    result = CliRunner().invoke(main, ["trace", *map(str, arguments)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def ids(directory: Path) -> list[str]:
    return [each.session for each, _ in TraceReader(directory).closed_sessions()]


def lines_of(directory: Path) -> list[str]:
    return [line for path in files_of(directory) for line in path.read_text().splitlines()]


class TestList:
    def test_all_sessions_are_listed_with_their_outcome(self, recorded: Path) -> None:
        result = run("list", "-d", recorded)
        lines = result.stdout.splitlines()
        assert len(lines) == 4
        assert [line.split()[-3:] for line in lines[1:]] == [
            ["relayed", "250", "2"],
            ["refused", "550", "2"],
            ["relayed", "250", "2"],
        ]
        assert lines[1].split()[3:6] == ["192.0.2.1:4711", "a@x", "b@y"]

    @pytest.mark.parametrize("columns", [50, 60, 80, 100])
    def test_a_narrow_one_has_fewer_columns_and_whole_words(
        self, recorded: Path, columns: int
    ) -> None:
        whole = run("list", "-d", recorded).stdout.split()
        result = run("list", "-d", recorded, columns=columns)
        lines = result.stdout.splitlines()
        assert max(map(len, lines)) <= columns
        assert set(result.stdout.split()) <= set(whole)
        shown = [set(line.split()) for line in lines if re.match(r"\d{4}-", line)]
        assert len(shown) == 3
        for row, name in zip(shown, ids(recorded), strict=True):
            assert {name, "b@y"} < row
        assert ("a@x" in result.stdout) == (columns >= 60)
        assert ("too narrow for the column" in result.stderr) == (columns < 80)

    def test_a_long_address_is_folded_rather_than_left_out(self, tmp_path: Path) -> None:
        address = "b@" + "y" * 70
        record_one(tmp_path, address)
        result = run("list", "-d", tmp_path, columns=60)
        assert max(map(len, result.stdout.splitlines())) <= 60
        assert result.stdout.count("y") >= 70

    def test_json_is_one_record_a_line_as_it_is_in_the_files(self, recorded: Path) -> None:
        result = run("list", "-d", recorded, "--json", "--code", "550", columns=20)
        (line,) = result.stdout.splitlines()
        assert result.stderr == ""
        (kept,) = [
            text for text in lines_of(recorded) if '"closed"' in text and ids(recorded)[1] in text
        ]
        assert json.loads(line) == json.loads(kept)

    def test_json_of_a_hostile_file_is_printable(self, tmp_path: Path) -> None:
        record_one(tmp_path, "b@y")
        (file,) = files_of(tmp_path)
        evil = "b\u202e\x7f\x9b\u2028"
        file.write_text(file.read_text().replace('"b@y"', f'"{evil}"'))
        (line,) = run("list", "-d", tmp_path, "--json").stdout.splitlines()
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["transactions"][0]["recipients"] == [evil]

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            (["--code", "550"], 1),
            (["--code", "5"], 1),
            (["--code", "4"], 0),
            (["--text", "BARE_"], 1),
            (["--address", "B@y"], 3),
            (["--address", "192.0.2.1"], 3),
            (["--address", "::ffff:192.0.2.1"], 3),
            (["--address", "[::FFFF:c000:201]"], 3),
            (["--address", "::ffff:192.0.2.2"], 0),
            (["--address", "nobody"], 0),
            (["--since", "2020-01-01"], 3),
            (["--since", "2020-01-01T08:00", "--until", "2099-12-31 23:59:59"], 3),
            (["--until", "2020-01-01"], 0),
            (["--last", "2"], 2),
        ],
    )
    def test_filters(self, recorded: Path, filters: list[str], count: int) -> None:
        result = run("list", "-d", recorded, *filters)
        assert len(result.stdout.splitlines()) == 1 + count

    def test_a_wrong_time_is_answered_with_an_example(self, recorded: Path) -> None:
        result = run("list", "-d", recorded, "--since", "yesterday")
        assert result.exit_code == 2
        assert "'yesterday' is not a time; write, for example, 2026-11-24, " in result.stderr

    def test_a_pipe_gets_lines_that_are_whole(
        self, recorded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("COLUMNS", raising=False)
        result = CliRunner().invoke(main, ["trace", "list", "-d", str(recorded)])
        assert len(result.stdout.splitlines()) == 4

    def test_torn_lines_do_not_hide_others(self, recorded: Path) -> None:
        (recorded / "trace-3.jsonl").write_bytes(b'{"what":"closed","sess\n\nx')
        (recorded / "trace-4.jsonl").touch()
        assert len(ids(recorded)) == 3

    def test_a_long_list_costs_little_for_each_row(self) -> None:
        """To lay out one row as rich's table does takes 20,000 calls."""
        session = Closed("s", 1.0, 0.0, "smtp", "192.0.2.1", 1, "", "quit", *[0] * 6, [], [], [])
        message = Transaction("relayed", "a@x", ["b@y"] * 5, [], 1, "250 ok", 0.1, [7, 1])
        session.transactions = [message]
        console = Console(width=60, file=io.StringIO())
        calls = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            console.print(terminal.list_table([session] * 200, console)[0])
        finally:
            sys.setprofile(None)
        assert calls < 200 * 1000

    @pytest.mark.parametrize(
        "write", [json.dumps, partial(json.dumps, sort_keys=True, separators=(" , ", " : "))]
    )
    def test_files_that_another_program_has_rewritten_are_read(
        self, recorded: Path, write: Callable[[Any], str]
    ) -> None:
        """As jq does, with blanks after colons or sorted keys."""
        before = run("list", "-d", recorded), run("show", "-d", recorded, ids(recorded)[0])
        for path in files_of(recorded):
            written = [write(json.loads(line)) for line in path.read_text().splitlines()]
            path.write_text("\n".join(written) + "\n")
        after = run("list", "-d", recorded), run("show", "-d", recorded, ids(recorded)[0])
        assert [each.output for each in after] == [each.output for each in before]

    def test_progress_is_reported(self, recorded: Path) -> None:
        reported: list[int] = []
        reader = TraceReader(recorded)
        reader.on_progress(reported.append)
        assert list(reader.closed_sessions())
        assert sum(reported) == sum(path.stat().st_size for path in files_of(recorded))


def record_one(directory: Path, recipient: str) -> None:
    trace = TraceRecorder(RotatingFiles(directory, 0, 1 << 20, 5), Later())
    session = Watched(trace)
    session.sends("MAIL FROM:<a@x>", f"RCPT TO:<{recipient}>")
    session.says("250 a", "250 b")
    session.close()
    trace.close()


class TestShow:
    def test_both_sides_on_one_time_line(self, recorded: Path) -> None:
        result = run("show", "-d", recorded, ids(recorded)[1])
        assert "192.0.2.1:4711 -> 192.0.2.9:25   10.0.0.1:33333 -> 10.0.0.5:25" in result.stdout
        assert re.search(r"│─ MAIL \| RCPT \| DATA ─+▶│", result.stdout)
        assert re.search(r"│─ RCPT ─+▶ 250 250 ms │", result.stdout)
        assert re.search(r"◀─+ 250 \| 250 \| 354 ─│", result.stdout)
        assert re.search(r"│─ end of data ─*▶ 550 250 ms │", result.stdout)
        assert "2 round trips saved" in result.stdout

    def test_both_sides_in_a_narrow_terminal(self, recorded: Path) -> None:
        result = run("show", "-d", recorded, ids(recorded)[1], columns=60)
        assert "│─ MAIL|RCPT|DATA ─▶│" in result.stdout
        assert "│─ RCPT ▶ 250 250 ms │" in result.stdout

    def test_what_smtpproxy_said_itself(self, forwarded: Path) -> None:
        (name,) = ids(forwarded)
        result = run("show", "-d", forwarded, name)
        assert re.search(r"│─ XFORWARD ─*▶ 250 250 ms │\n.*│─ MAIL ─+▶ 250 250 ms │", result.stdout)
        assert "    > XFORWARD ADDR=192.0.2.1\n    < 250 known\n    > MAIL" in result.stdout
        (name,) = ids(forwarded)
        session = TraceReader(forwarded).session(name)
        inner = [sent for _, inside, _, sent in pcapng._payloads(session.exchanges) if inside]
        assert inner[1:5] == [
            b"XFORWARD ADDR=192.0.2.1\r\n",
            b"250 known\r\n",
            b"MAIL FROM:<a@x>\r\n",
            b"250 a\r\n",
        ]

    def test_each_side_may_be_inside_tls(self, secured: Path) -> None:
        began, failed, away = (run("show", "-d", secured, name).stdout for name in ids(secured))
        assert re.search(r"\d\.\d{3} │  inside TLS 1\.3 +│ +│\n", began)
        assert re.search(r"│ +│ +│  inside TLS 1\.2 +│\n", began)
        assert "the client is inside TLS 1.3, TLS_AES_256_GCM_SHA384\n" in began
        assert "the MTA is inside TLS 1.2, ECDHE-RSA\n" in began
        assert re.search(r"│  TLS failed +│", failed)
        assert "TLS with the client failed: <b>unknown ca\\x1b\n" in failed
        assert re.search(r"│  no end of data +│", failed)
        assert "the client's lone dot is no end of data: bare lf\n" in failed
        assert re.search(r"│  turned away +│", away)
        assert "client turned away: cut short\n" in away

    def test_json_is_each_record_of_the_session(self, recorded: Path) -> None:
        name = ids(recorded)[2]
        result = run("show", "-d", recorded, name, "--json")
        shown = [json.loads(line) for line in result.stdout.splitlines()]
        kept = [json.loads(text) for text in lines_of(recorded)]
        assert shown == [each for each in kept if each.get("session") == name]
        assert shown[0]["what"] == "opened"
        assert shown[-1]["what"] == "closed"

    def test_violations_and_content(self, recorded: Path) -> None:
        result = run("show", "-d", recorded, ids(recorded)[2])
        assert "violation by the client: bare_lf, rewritten" in result.stdout
        assert "    a\\nb\\r\\n" in result.stdout

    def test_no_such_session(self, recorded: Path) -> None:
        result = run("show", "-d", recorded, "nobody-1")
        assert (result.exit_code, result.stderr[:26]) == (1, "smtpproxy: no session nobo")


def test_follow_yields_whole_records_once(recorded: Path) -> None:
    follower = trace_commands._Follower(recorded)
    assert not list(follower.new_records(b""))
    line = records.encode(Gap("s", 7)) + b"\n"
    with (recorded / "trace-9.jsonl").open("ab") as file:
        for written, found in ((records.HEADER + line + line[:9], 1), (line[9:], 1), (b"", 0)):
            file.write(written)
            file.flush()
            assert list(follower.new_records(b"")) == [Gap("s", 7)] * found
    assert not follower.problems.count


def test_follow_prints_when_tls_starts(secured: Path) -> None:
    (file,) = files_of(secured)
    reported = [terminal.line_of(decode(line)) for line in file.read_bytes().splitlines()[1:]]
    noted = [
        each.plain.split("   ")[-1].strip()
        for each in reported
        if each is not None and "TLS" in each
    ]
    assert noted[:2] == [
        "the MTA is inside TLS 1.2, ECDHE-RSA",
        "the client is inside TLS 1.3, TLS_AES_256_GCM_SHA384",
    ]


def test_an_unknown_verb_that_was_sent_is_in_capitals_and_its_escapes_are_not() -> None:
    step = records.Step("xfo\\x7fo bar", "500 what", 1.0, 2.0)
    exchange = Exchanged("s", "XFO\\x7fO", "xfo\\x7fo bar", 500, "500 what", 1.0, steps=[step])
    assert terminal._step(exchange, step).short == "XFO\\x7fO"


def test_what_a_proxy_in_front_says_is_printed_as_its_word() -> None:
    said = {"forwarded_authority": "mx.example", "forwarded_tls": "TLSv1.3", "forwarded_cn": "c"}
    line = terminal.line_of(records.Noted("s", 1.0, "proxy_header_read", **said))
    assert line is not None
    assert line.plain.endswith(
        "PROXY header of the proxy in front: authority mx.example, TLS TLSv1.3, CN c"
    )


def test_follow_prints_each_exchange(recorded: Path) -> None:
    session = TraceReader(recorded).session(ids(recorded)[0])
    reported = [str(text) for record in session.records if (text := terminal.line_of(record))]
    assert any(re.search(r"\+RCPT TO:<b@y>  250 b  250 ms$", line) for line in reported)
    assert reported[-1].endswith("closed, quit, 2 round trips saved")


class TestCapture:
    def test_wireshark_reads_both_legs_as_smtp(self, recorded: Path, tmp_path: Path) -> None:
        tshark = command("tshark")
        file = tmp_path / "session.pcapng"
        result = run("export", "-d", recorded, ids(recorded)[0], "--pcapng", file)
        assert result.exit_code == 0
        fields = ["-T", "fields", "-e", "tcp.stream", "-e", "smtp.req.command"]
        checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
        argv = [tshark, "-r", str(file), *checks, "-Y", "smtp.req.command", *fields]
        found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert [line.split("\t") for line in found.splitlines()] == [
            ["0", "EHLO"],
            ["1", "EHLO"],
            ["0", "MAIL,RCPT,DATA"],
            ["1", "MAIL"],
            ["1", "RCPT"],
            ["1", "DATA"],
            ["0", "QUIT"],
            ["1", "QUIT"],
        ]
        wrong = [tshark, "-r", str(file), *checks, "-Y", "_ws.expert.severity >= 0x600000"]
        assert not subprocess.run(wrong, capture_output=True, text=True, check=True).stdout

    def test_ends_of_any_kind(self) -> None:
        assert str(pcapng._end("[2001:db8::1]:4711").address) == "2001:db8::1"
        assert pcapng._end("127.0.0.1:2525", server=True).port == 25
        assert pcapng._end("127.0.0.1:587", server=True).port == 587
        assert str(pcapng._end("unix").address) == "127.0.0.1"

    def test_content_that_was_not_recorded_is_reported(self) -> None:
        record = Exchanged(
            "s", "end_of_data", content_bytes=90, content="Subject: x\r\ncut he", content_cut=True
        )
        assert pcapng.command_octets(record) == (
            b"Subject: x\r\n[90 bytes of content, of which 12 were recorded]\r\n.\r\n"
        )

    def test_a_page_shows_a_gap_where_it_was(self) -> None:
        session = RecordedSession("s-1")
        one, other = (Exchanged("s-1", verb, verb) for verb in ("NOOP", "QUIT"))
        for record in (one, Gap("s-1", 7), other):
            add(session, record)
        assert session.records == [one, Gap("s-1", 7), other]

    def test_without_a_server_there_is_nothing(self) -> None:
        with pytest.raises(ValueError, match="no connection to a server"):
            pcapng.capture(RecordedSession("s"))


class TestReplay:
    @pytest.fixture
    async def mta(self) -> AsyncIterator[LegacyMTA]:
        async with LegacyMTA(refused={b"b@y": b"550 no b"}) as mta:
            yield mta

    @pytest.mark.parametrize("lock_step", [True, False])
    async def test_the_replies_are_compared(
        self, recorded: Path, mta: LegacyMTA, lock_step: bool
    ) -> None:
        session = TraceReader(recorded).session(ids(recorded)[0])
        performance = await replay(
            session, parse_server(mta.address), lock_step=lock_step, as_fast=True
        )
        differing = [each.exchange.verb for each in performance.played if each.differs]
        assert differing[:2] == ["RCPT", "DATA"]
        assert performance.stopped == "the reply to DATA differs, so no content can follow"

    async def test_a_message_arrives_again(self, recorded: Path) -> None:
        session = TraceReader(recorded).session(ids(recorded)[0])
        async with LegacyMTA() as mta:
            performance = await replay(session, parse_server(mta.address), as_fast=True)
        assert not performance.stopped
        assert not any(each.differs for each in performance.played)
        (message,) = mta.messages
        assert (message.sender, message.content) == (b"a@x", b"text\r\n")

    async def test_what_was_sent_inside_tls_is_played_in_plaintext(self, recorded: Path) -> None:
        session = TraceReader(recorded).session(ids(recorded)[0])
        starttls = Exchanged(session.id, "STARTTLS", "STARTTLS", 220, "220 go", framed=1.0)
        again = Exchanged(session.id, "EHLO", "EHLO x", 250, "250 mx", framed=2.0)
        session.exchanges[2:2] = [starttls, again]
        async with LegacyMTA() as mta:
            performance = await replay(session, parse_server(mta.address), as_fast=True)
        assert not performance.stopped
        verbs = [each.exchange.verb for each in performance.played]
        assert verbs == ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "end_of_data", "QUIT"]
        assert len(mta.messages) == 1

    async def test_a_session_may_last_longer_than_a_reply(
        self, recorded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("smtpproxy.trace.replay.REPLY_LIMIT_S", 0.3)
        session = TraceReader(recorded).session(ids(recorded)[0])
        session.exchanges[-1].framed = session.began + 0.6
        async with LegacyMTA() as mta:
            performance = await replay(session, parse_server(mta.address))
        assert not performance.stopped

    @pytest.mark.parametrize("said", [b"x" * 100_000 + b"\r\n", b"hello\r\n"])
    async def test_a_malformed_reply_ends_the_replay(self, recorded: Path, said: bytes) -> None:
        async def odd(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            writer.close()

        session = TraceReader(recorded).session(ids(recorded)[0])
        async with await asyncio.start_server(odd, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            performance = await replay(session, parse_server(f"127.0.0.1:{port}"))
        assert performance.stopped.startswith("the server sent an invalid reply: ")
        assert len(performance.stopped) < 500

    def test_a_server_that_cannot_be_reached_is_an_error(self, recorded: Path) -> None:
        result = run("replay", "-d", recorded, ids(recorded)[0], "--to", "127.0.0.1:1")
        assert (result.exit_code, "cannot connect" in result.stderr) == (1, True)

    def test_a_name_that_is_not_known_is_reported_as_that(
        self, recorded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        result = run("replay", "-d", recorded, ids(recorded)[0], "--to", "mx.example:25")
        expected = "smtpproxy: cannot connect to mx.example:25: Name or service not known\n"
        assert (result.exit_code, result.stderr) == (1, expected)

    def test_the_server_must_have_an_address_of_its_own(self, recorded: Path) -> None:
        result = run("replay", "-d", recorded, ids(recorded)[0], "--to", "original")
        assert (result.exit_code, "needs the address of a server" in result.stderr) == (2, True)

    @pytest.mark.parametrize("octets", [0, 1, 2, 77, 78, 79, 5000])
    def test_filler_has_the_size_of_the_content(self, octets: int) -> None:
        record = Exchanged("s", "end_of_data", content_bytes=octets)
        played = b"".join(played_pieces(record))
        assert played.endswith(b".\r\n")
        assert abs(len(played) - 3 - octets) <= 1
