"""`smtpproxy trace stats`: what it counts, in bounded memory, and how it shows it."""

import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from smtpproxy.cli import main
from smtpproxy.trace import statistics_collector, statistics_page, trace_commands
from smtpproxy.trace.bounded_counts import BoundedCounts, Durations
from smtpproxy.trace.reader import TraceReader, files_of
from smtpproxy.trace.records import HEADER, Closed, Exchanged, Noted, Transaction, encode_lines
from smtpproxy.trace.statistics import Statistics
from smtpproxy.trace.statistics_collector import DECODER, StatisticsCollector
from smtpproxy.trace.statistics_report import bar_text, lines_of


def run(*arguments: str | Path, columns: int = 100) -> Result:
    environment = {"COLUMNS": str(columns)}
    result = CliRunner().invoke(main, ["trace", "stats", *map(str, arguments)], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def statistics_of(*arguments: str | Path) -> dict[str, Any]:
    (line,) = run(*arguments, "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def collected(*records: Any, chosen: set[str] | None = None) -> Statistics:
    collector = StatisticsCollector(chosen)
    collector.add(DECODER.decode_lines(encode_lines(records)))
    return collector.report()


def exchange(reply: str, session: str = "s1", verb: str = "RCPT", took: float = 0.5) -> Exchanged:
    code = int(reply[:3] or 0)
    return Exchanged(session, verb, verb, code, reply, 10.0, 10.0, 10.0 + took)


def closed(session: str = "s1", client: str | None = "192.0.2.1", **more: Any) -> Closed:
    values: dict[str, Any] = {
        "duration_s": 1.0,
        "commands": 8,
        "round_trips_saved": 4,
        "messages": 1,
        "bytes_from_client": 100,
        "bytes_from_backend": 100,
        "codes": [],
        "violations": [],
        "transactions": [],
    } | more
    return Closed(session, 20.0, 10.0, "smtp", client, 4711, "10.0.0.5:25", "client_quit", **values)


class TestReport:
    def test_all_that_was_recorded_is_counted(self, recorded: Path) -> None:
        found = statistics_of("-d", recorded)
        assert (found["sessions"], found["approximate"]) == (3, False)
        assert [(each["outcome"], each["code"], each["count"]) for each in found["messages"]] == [
            ("relayed", "250", 2),
            ("refused", "550", 1),
        ]
        times = {each["verb"]: each for each in found["verbs"]}
        assert set(times) == {"EHLO", "MAIL", "RCPT", "DATA", "end_of_data", "QUIT"}
        mail = times["MAIL"]
        assert (mail["count"], mail["seconds"]) == (3, pytest.approx(0.75, abs=1e-3))
        assert [mail["p50_s"], mail["p99_s"], mail["max_s"]] == pytest.approx([0.25] * 3, rel=0.01)
        assert len(mail["slowest"]) == 3
        assert found["saved"] == {
            "commands": 15,
            "round_trips": 6,
            "seconds": pytest.approx(6 * 0.025),
            "measured_round_trips": 6,
            "measured_sessions": 3,
            "client_rtt_p50_s": pytest.approx(0.025, rel=0.01),
            "client_rtt_p95_s": pytest.approx(0.025, rel=0.01),
        }
        replies = {(each["verb"], each["code"]): each["texts"] for each in found["replies"]}
        assert replies["end_of_data", "550"] == [{"text": "5.7.1 spam", "count": 1}]
        (client,) = found["clients"]["by_bytes"]
        assert client == {
            "client": "192.0.2.1",
            "sessions": 3,
            "messages": 2,
            "bytes": 240,
            "errors": 1,
            "violations": 1,
        }
        assert found["clients"]["all"] == client | {"client": ""}
        assert found["groups"] == [
            {"least": 1, "most": 1, "count": 3},
            {"least": 3, "most": 3, "count": 3},
        ]

    def test_tls_is_counted_by_side_and_version(self, secured: Path) -> None:
        assert statistics_of("-d", secured)["tls"] == [
            {"side": "backend", "version": "TLSv1.2", "count": 2},
            {"side": "client", "version": "TLSv1.3", "count": 1},
            {"side": "client", "version": "failed", "count": 1},
        ]

    @pytest.mark.parametrize(
        ("options", "sessions"),
        [
            (["--code", "550"], 1),
            (["--text", "bare_lf"], 1),
            (["--address", "192.0.2.2"], 0),
            (["--since", "2020-01-01", "--until", "2099-01-01"], 3),
            (["--last", "2"], 2),
        ],
    )
    def test_options_choose_sessions_as_those_of_list_do(
        self, recorded: Path, options: list[str], sessions: int
    ) -> None:
        found = statistics_of("-d", recorded, *options)
        assert (found["sessions"], found["exchanges"]) == (sessions, 7 * sessions)
        assert sum(each["count"] for each in found["messages"]) == sessions

    def test_a_session_without_a_measured_round_trip_saves_no_seconds(self) -> None:
        found = collected(closed("s1", client_rtt_s=0.5), closed("s2")).saved
        assert (found.round_trips, found.measured_round_trips, found.seconds) == (8, 4, 2.0)
        shown = shown_at(80, collected(closed("s1", client_rtt_s=0.5), closed("s2")))
        assert "4 round trips of them in 1 session whose round-trip time was not" in shown

    def test_a_session_that_has_not_ended_counts_unless_options_choose(self) -> None:
        records = exchange("250 ok", "s1"), exchange("250 ok", "s2"), closed("s2")
        assert (collected(*records).sessions, collected(*records).exchanges) == (1, 2)
        assert collected(*records, chosen={"s2"}).exchanges == 1

    def test_a_session_without_a_client_address_is_unix(self) -> None:
        assert collected(closed(client=None)).clients.by_bytes[0].client == "unix"

    def test_nothing_recorded_is_a_report_too(self, tmp_path: Path) -> None:
        result = run("-d", tmp_path)
        assert result.stdout == "0 sessions, 0 exchanges\n"
        assert result.stderr == f"smtpproxy: no trace files in {tmp_path}\n"
        assert statistics_of("-d", tmp_path)["messages"] == []


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("250 2.0.0 Ok: queued as 4bXyz12", "2.0.0 Ok: queued as *"),
        ("550 5.1.1 <joe@x.example>: no user", "5.1.1 * no user"),
        ("550-first 1\r\n550 second", "first *"),
        ("450 4.2.0 try again in 300 seconds", "4.2.0 try again in * seconds"),
        ("250 2.1.5", "2.1.5"),
        ("250", ""),
        ("", ""),
        ("\\=" + "NTUwIG5vIHN1Y2ggdXNlcg==", "no such user"),
        ("\\=?", ""),
    ],
)
def test_replies_that_differ_in_a_word_have_one_text(reply: str, text: str) -> None:
    record = Exchanged("s1", "RCPT", reply=reply)
    (found,) = collected(record).replies
    assert [each.text for each in found.texts] == [text]


def test_the_slowest_replies_are_named_with_their_sessions() -> None:
    times = list(range(1, 101))
    random.Random(1).shuffle(times)
    (verb,) = collected(*(exchange("250 a", f"s{time}", took=time) for time in times)).verbs
    assert [each.session for each in verb.slowest] == ["s100", "s99", "s98", "s97", "s96"]
    assert [verb.p50_s, verb.p95_s, verb.p99_s] == pytest.approx([50, 95, 99], rel=0.011)


class TestBounds:
    def test_percentiles_are_exact_to_one_percent(self) -> None:
        durations = Durations()
        values = [random.Random(1).lognormvariate(-4, 3) for _ in range(2000)] + [0.0]
        durations.add(values)
        for percent in (50, 95, 99, 100):
            exact = sorted(values)[max(-(-len(values) * percent // 100) - 1, 0)]
            assert durations.percentile(percent) == pytest.approx(exact, rel=0.011)
        assert Durations().percentile(50) == 0

    def test_the_largest_keys_stay_whatever_else_comes(self) -> None:
        counts: BoundedCounts[str] = BoundedCounts(2, most=100)
        for number in range(5000):
            counts.add(f"once-{number}", 1, 0)
            counts.add("often", 5, 0)
            counts.add("other", 0, 3)
        assert len(counts.counts) <= 100
        assert counts.dropped
        assert counts.totals == [5000 * 6, 5000 * 3]
        assert counts.largest(1) == [("often", [25000, 0])]
        assert counts.largest(1, 1) == [("other", [0, 15000])]

    def test_errors_of_too_many_open_sessions_make_the_report_approximate(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(statistics_collector, "OPEN_SESSIONS", 2)
        for number, approximate in ((2, False), (3, True)):
            found = collected(*(exchange("550 no", f"s{n}") for n in range(number)))
            assert found.approximate is approximate

    def test_a_hostile_variety_takes_bounded_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics_collector, "OPEN_SESSIONS", 100)
        collector = StatisticsCollector()
        for part in range(12):
            numbers = range(1000 * part, 1000 * part + 1000)
            records: list[Any] = [
                exchange(f"550 {'x' * 300}{_letters(n)}", f"s{n}", f"VERB{n}") for n in numbers
            ]
            records += [Noted(f"s{n}", 1.0, "tls_started", f"side {n}", "TLSv1.3") for n in numbers]
            records += [
                closed(
                    f"t{n}",
                    f"client {n}",
                    transactions=[Transaction(f"out {n}", "", [], [], 1, "250 a", 1.0, [n])],
                )
                for n in numbers
            ]
            collector.add(DECODER.decode_lines(encode_lines(records)))
        found = collector.report()
        assert found.approximate
        assert (found.sessions, found.exchanges) == (12_000, 12_000)
        assert found.clients.all.sessions == 12_000
        assert len(msgspec.json.encode(found)) < 100_000
        assert sys.getsizeof(collector._failed) < 20_000
        tables = collector._clients, collector._texts, collector._codes, collector._messages
        assert all(len(table.counts) <= 10_000 for table in tables)
        assert {each.verb for each in found.verbs if each.count > 1} == {"other_verbs"}

    def test_an_exchange_costs_few_calls(self) -> None:
        """A gigabyte has millions of exchanges, and is to take seconds."""
        records = DECODER.decode_lines(encode_lines([exchange("250 2.1.5 Ok")] * 5000))
        collector = StatisticsCollector()
        calls = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            collector.add(records)
        finally:
            sys.setprofile(None)
        assert calls < 100


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


class TestFiles:
    def test_progress_is_reported(self, recorded: Path) -> None:
        reported: list[int] = []
        reader = TraceReader(recorded)
        reader.on_progress(reported.append)
        assert list(reader.decoded(DECODER))
        assert sum(reported) == sum(path.stat().st_size for path in files_of(recorded))

    def test_lines_that_are_no_records_are_named_and_the_others_count(self, tmp_path: Path) -> None:
        lines = encode_lines([exchange("250 a"), closed()]).splitlines()
        broken = b"{"
        (tmp_path / "trace-1.jsonl").write_bytes(
            HEADER + b"\n".join([lines[0], broken, lines[1], b"[" * 100_000])
        )
        result = run("-d", tmp_path, "--json")
        assert (result.exit_code, json.loads(result.stdout)["sessions"]) == (3, 1)
        assert "trace-1.jsonl, line 3: no record" in result.stderr
        assert "trace-1.jsonl, line 5: no record" in result.stderr
        assert "2 records or files could not be read" in result.stderr

    def test_another_version_in_the_middle_ends_the_file(self, tmp_path: Path) -> None:
        other = HEADER.replace(b"1", b"2")
        (tmp_path / "trace-1.jsonl").write_bytes(HEADER + other + encode_lines([closed()]))
        result = run("-d", tmp_path)
        assert result.exit_code == 1
        assert "its records have version 2" in result.stderr

    def test_the_latest_are_counted_if_too_many_are_chosen(
        self, recorded: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trace_commands, "CHOSEN_SESSIONS", 2)
        result = run("-d", recorded, "--address", "192.0.2.1")
        assert result.stdout.startswith("2 sessions, 14 exchanges")
        assert "only the latest 2 of these sessions count" in result.stderr

    def test_a_page_that_cannot_be_written_is_an_error(self, recorded: Path) -> None:
        result = run("-d", recorded, "--html", recorded / "none" / "x.html")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "cannot write" in result.stderr


def shown_at(columns: int, found: Statistics) -> str:
    file = io.StringIO()
    Console(file=file, width=columns).print(lines_of(found, columns))
    return file.getvalue()


class TestScreen:
    @pytest.mark.parametrize("columns", [40, 80, 100, 160])
    def test_no_line_is_wider_than_the_terminal(self, recorded: Path, columns: int) -> None:
        lines = run("-d", recorded, columns=columns).stdout.splitlines()
        assert max(map(len, lines)) <= min(columns, 120)
        assert "  relayed 250" in "\n".join(lines)

    def test_a_column_is_below_its_name_and_nothing_is_cut(self, recorded: Path) -> None:
        found = run("-d", recorded, "--since", "2020-01-01", columns=60).stdout
        lines = found.splitlines()
        names = next(line for line in lines if line.endswith("longest"))
        mail = next(line for line in lines if line.startswith("  MAIL "))
        ends = [match.end() for match in re.finditer(r"in all|\S+", names)]
        assert [match.end() for match in re.finditer(r"\S+(?: ms| s)?", mail)][1:] == ends
        assert " UTC" in found
        assert re.search(r" violations$", found, re.MULTILINE)

    def test_times_are_shown_from_microseconds_to_hours(self) -> None:
        shown = shown_at(
            100,
            collected(
                exchange("250 a", took=0.00002),
                exchange("250 a", verb="MAIL", took=20_000),
                closed(client_rtt_s=0.00003),
            ),
        )
        assert re.search(r"RCPT +1 +20 µs +20 µs", shown)
        assert "slowest: 20 µs in " in " ".join(shown.split())
        assert re.search(r"MAIL +1 +5.6 h", shown)
        assert "saved 0.1 ms at the clients' own round-trip times: p50 30 µs, p95 30 µs" in shown

    def test_a_long_address_has_a_line_of_its_own(self) -> None:
        address = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"
        lines = shown_at(80, collected(closed(client=address))).splitlines()
        assert f"  {address}" in lines

    def test_a_name_on_the_page_is_no_markup(self) -> None:
        page = statistics_page.page(collected(closed(client="<b>&")))
        assert '<td class="">&lt;b&gt;&amp;</td>' in page
        assert "<b>" not in page

    def test_bars_have_eighths_of_a_cell(self) -> None:
        assert [bar_text(share, 4) for share in (0.0001, 0.5, 0.53, 1)] == [
            "▏",
            "██",
            "██▏",
            "████",
        ]
